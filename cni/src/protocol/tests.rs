use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::config::ValidAttachment;
use super::result::append;
use super::*;

fn environment(changes: &[(&str, Option<&str>)]) -> Result<(Command, Call), Failure> {
    let mut variables = BTreeMap::from([
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "4f5e"),
        ("CNI_NETNS", "/run/netns/x"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID="),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ]);
    for (name, value) in changes {
        match value {
            Some(value) => variables.insert(name, value),
            None => variables.remove(name),
        };
    }
    Call::read(|name| variables.get(name).map(|value| (*value).to_owned()))
}

#[test]
fn the_environment_is_read() {
    let (command, call) = environment(&[]).unwrap();
    assert_eq!(command, Command::Add);
    assert_eq!((call.container.as_str(), call.interface.as_str()), ("4f5e", "eth0"));
    assert_eq!(call.pod().as_deref(), Some("shop/cart-0"));
    assert_eq!(call.path.len(), 2);
    for command in Command::ALL {
        assert_eq!(environment(&[("CNI_COMMAND", Some(command.word()))]).unwrap().0, command);
    }
}

#[test]
fn a_wrong_environment_is_code_4_and_names_every_variable() {
    for (name, value) in [
        ("CNI_COMMAND", None),
        ("CNI_COMMAND", Some("add")),
        ("CNI_CONTAINERID", None),
        ("CNI_CONTAINERID", Some("-x")),
        ("CNI_CONTAINERID", Some("a/b")),
        ("CNI_NETNS", Some("")),
        ("CNI_IFNAME", None),
        ("CNI_IFNAME", Some("a-very-long-name")),
        ("CNI_IFNAME", Some("..")),
        ("CNI_IFNAME", Some("a b")),
        ("CNI_IFNAME", Some("eth%d")),
        ("CNI_ARGS", Some("novalue")),
    ] {
        let failure = environment(&[(name, value)]).unwrap_err();
        assert!(failure.code == code::ENVIRONMENT && failure.message.contains(name), "{name} {value:?}: {failure}");
    }
    let both = environment(&[("CNI_CONTAINERID", None), ("CNI_IFNAME", None)]).unwrap_err();
    assert!(both.message.contains("CNI_CONTAINERID") && both.message.contains("CNI_IFNAME"), "{both}");
}

#[test]
fn what_a_command_does_not_need_may_be_missing() {
    let none = [("CNI_CONTAINERID", None), ("CNI_NETNS", None), ("CNI_IFNAME", None), ("CNI_ARGS", None)];
    for command in ["GC", "STATUS", "VERSION"] {
        environment(&[&none[..], &[("CNI_COMMAND", Some(command))]].concat()).unwrap();
    }
    environment(&[("CNI_COMMAND", Some("DEL")), ("CNI_NETNS", None)]).unwrap();
}

#[test]
fn names_of_pods_that_are_none_are_left_out() {
    for arguments in ["K8S_POD_NAME=x", "K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=x", "K8S_POD_NAMESPACE=;K8S_POD_NAME=x"] {
        assert_eq!(environment(&[("CNI_ARGS", Some(arguments))]).unwrap().1.pod(), None, "{arguments}");
    }
    let long = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={}", "n".repeat(200), "p".repeat(200));
    assert_eq!(environment(&[("CNI_ARGS", Some(&long))]).unwrap().1.pod(), None);
}

/// The smallest configuration that is right, with changes.
fn config(changes: &Value) -> Result<Config, Failure> {
    let mut value =
        json!({ "cniVersion": "1.1.0", "name": "net", "type": "podlane-cni", "podCIDRs": ["10.244.1.0/24"] });
    for (key, member) in changes.as_object().unwrap() {
        value[key] = member.clone();
    }
    Config::read(value.to_string().into_bytes())
}

/// Read, judged and its ranges looked at, as ADD does.
fn judged(changes: &Value) -> Result<Config, Failure> {
    let config = config(changes)?;
    config.judge()?;
    if config.delegate.is_none() {
        config.plan()?;
    }
    Ok(config)
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = judged(&json!({})).unwrap();
    assert_eq!((config.bridge.as_str(), config.mtu), ("cbr0", None));
    assert!(config.is_gateway && config.is_default_gateway && !config.hairpin && !config.require_daemon);
    assert_eq!(config.data.to_str(), Some("/var/lib/podlane/ipam"));
    assert_eq!(config.control_socket.to_str(), Some("/run/podlane/default.sock"));
    let delegated = json!({ "dataDir": "/x", "ipam": { "type": "host-local", "dataDir": "/y" } });
    for (changes, data) in [(delegated, "/x"), (json!({ "ipam": { "dataDir": "/y" } }), "/y")] {
        assert_eq!(judged(&changes).unwrap().data.to_str(), Some(data));
    }
    assert!(!judged(&json!({ "isGateway": false })).unwrap().is_default_gateway);
    assert!(judged(&json!({ "isGateway": false, "isDefaultGateway": true })).unwrap().is_gateway);
}

#[test]
fn each_mistake_has_the_code_of_the_specification() {
    for (changes, code, word) in [
        (json!({ "cniVersion": "0.3.1" }), code::INCOMPATIBLE_VERSION, "0.3.1"),
        (json!({ "cniVersion": null }), code::INCOMPATIBLE_VERSION, "0.1.0"),
        (json!({ "cniVersion": 1 }), code::DECODING, "cniVersion"),
        (json!({ "name": "" }), code::CONFIGURATION, "name"),
        (json!({ "name": "a b" }), code::CONFIGURATION, "name"),
        (json!({ "brigde": "x" }), code::UNSUPPORTED_FIELD, "\"brigde\": \"x\""),
        (json!({ "ipMasq": true }), code::UNSUPPORTED_FIELD, "\"ipMasq\": true"),
        (json!({ "vlan": 7 }), code::UNSUPPORTED_FIELD, "\"vlan\": 7"),
        (json!({ "ipam": { "subnets": 1 } }), code::UNSUPPORTED_FIELD, "\"subnets\": 1"),
        (json!({ "ipam": { "ranges": [[{ "subnet": "10.0.0.0/24", "x": 1 }]] } }), code::UNSUPPORTED_FIELD, "\"x\": 1"),
        (json!({ "bridge": "a/b" }), code::CONFIGURATION, "bridge"),
        (json!({ "mtu": 100 }), code::CONFIGURATION, "mtu"),
        (json!({ "mtu": "1500" }), code::DECODING, "mtu"),
        (json!({ "podCIDRs": "10.0.0.0/24" }), code::DECODING, "podCIDRs"),
        (json!({ "podCIDRs": ["10.0.0.1/24"] }), code::CONFIGURATION, "10.0.0.0/24"),
        (json!({ "podCIDRs": ["10.0.0.0"] }), code::CONFIGURATION, "no network"),
        (json!({ "podCIDRs": [] }), code::CONFIGURATION, "no addresses"),
        (json!({ "podCIDRs": ["10.0.0.0/24", "10.0.0.0/16"] }), code::CONFIGURATION, "overlap"),
        (json!({ "ipam": { "dataDir": "var" } }), code::CONFIGURATION, "dataDir"),
        (json!({ "ipam": { "type": "../host-local" } }), code::CONFIGURATION, "CNI_PATH"),
    ] {
        let failure = judged(&changes).unwrap_err();
        let said = failure.to_string();
        assert!(failure.code == code && said.contains(word), "{changes}: code {}: {said}", failure.code);
    }
    for (text, code) in [("", code::DECODING), ("{", code::DECODING), ("[]", code::DECODING), ("null", code::DECODING)]
    {
        assert_eq!(Config::read(text.into()).unwrap_err().code, code, "{text:?}");
    }
}

#[test]
fn what_runtimes_add_and_stock_configurations_leave_is_accepted() {
    judged(&json!({
        "cniVersions": ["1.0.0", "1.1.0"], "capabilities": { "ips": true }, "runtimeConfig": {}, "args": { "x": 1 },
        "cni.dev/valid-attachments": [], "dns": {}, "ipMasq": false, "promiscMode": false, "vlan": 0, "prevResult": null,
    }))
    .unwrap();
    judged(&json!({ "podCIDRs": null, "ipam": { "type": "host-local", "whatever": [1, 2] } })).unwrap();
}

#[test]
fn ranges_come_from_wherever_they_are_configured() {
    let networks = |changes: Value| -> Vec<Vec<String>> {
        let plan = judged(&changes).unwrap().plan().unwrap();
        let of_set =
            |set: &crate::ipam::range::RangeSet| set.ranges().iter().map(|range| range.subnet.to_string()).collect();
        plan.sets().iter().map(of_set).collect()
    };
    let cidrs = json!(["fd00::/64", "10.0.0.0/24", "10.0.1.0/24"]);
    assert_eq!(networks(json!({ "podCIDRs": cidrs })), [vec!["10.0.0.0/24", "10.0.1.0/24"], vec!["fd00::/64"]]);
    let of_file = json!({ "podCIDRs": null, "ipam": { "subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9" } });
    assert_eq!(networks(of_file), [vec!["10.0.0.0/24"]]);
    let of_runtime = json!({ "podCIDRs": null, "runtimeConfig": { "ipRanges": [[{ "subnet": "10.7.0.0/24" }]] } });
    assert_eq!(networks(of_runtime), [vec!["10.7.0.0/24"]]);
}

#[test]
fn a_pod_can_ask_for_addresses_in_three_ways() {
    let call = environment(&[("CNI_ARGS", Some("IP=10.244.1.7,fd00::7;MAC=0a:58:00:00:00:07"))]).unwrap().1;
    let nothing = Call::default();
    let texts = |config: &Config, call: &Call| -> Vec<String> {
        config.wanted(call).unwrap().iter().map(ToString::to_string).collect()
    };
    let plain = config(&json!({})).unwrap();
    assert_eq!(texts(&plain, &call), ["10.244.1.7", "fd00::7"]);
    assert_eq!(plain.wanted_mac(&call).unwrap().unwrap().to_string(), "0a:58:00:00:00:07");
    assert_eq!((texts(&plain, &nothing), plain.wanted_mac(&nothing).unwrap()), (vec![], None));
    let arguments = json!({ "args": { "cni": { "ips": ["10.244.1.8/24"], "mac": "0a:58:00:00:00:08" } } });
    assert_eq!(texts(&config(&arguments).unwrap(), &call), ["10.244.1.8"]);
    let runtime =
        json!({ "runtimeConfig": { "ips": ["10.244.1.9"], "mac": "0a:58:00:00:00:09" }, "args": arguments["args"] });
    assert_eq!(texts(&config(&runtime).unwrap(), &call), ["10.244.1.9"]);
    assert_eq!(config(&runtime).unwrap().wanted_mac(&call).unwrap().unwrap().to_string(), "0a:58:00:00:00:09");
    let wrong = config(&json!({ "runtimeConfig": { "ips": ["x"], "mac": "x" } })).unwrap();
    assert_eq!(wrong.wanted(&call).unwrap_err().code, code::CONFIGURATION);
    assert_eq!(wrong.wanted_mac(&call).unwrap_err().code, code::CONFIGURATION);
}

#[test]
fn a_missing_list_of_attachments_is_not_an_empty_one() {
    assert_eq!(config(&json!({})).unwrap().valid_attachments().unwrap_err().code, code::CONFIGURATION);
    assert_eq!(config(&json!({ "cni.dev/valid-attachments": [] })).unwrap().valid_attachments().unwrap(), []);
    let one = ValidAttachment { container: "a".into(), interface: "eth0".into() };
    let list = json!([{ "containerID": "a", "ifname": "eth0" }]);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        assert_eq!(config(&json!({ key: list })).unwrap().valid_attachments().unwrap(), std::slice::from_ref(&one));
    }
}

fn outcome() -> Outcome {
    Outcome {
        interfaces: vec![
            Interface { name: "cbr0".into(), mac: "0a:58:0a:f4:01:01".into(), mtu: Some(1500), sandbox: String::new() },
            Interface { name: "eth0".into(), mac: "0a:58:0a:f4:01:02".into(), mtu: Some(1500), sandbox: "/n".into() },
        ],
        ips: vec![
            Ip { address: "10.244.1.2/24".parse().unwrap(), gateway: "10.244.1.1".parse().ok(), interface: Some(1) },
            Ip { address: "fd00::2/64".parse().unwrap(), gateway: None, interface: Some(1) },
        ],
        routes: vec![Route { mtu: Some(1400), ..Route::to("0.0.0.0/0".parse().unwrap(), "10.244.1.1".parse().ok()) }],
        dns: Dns::default(),
    }
}

#[test]
fn a_result_has_the_form_of_its_version() {
    let forms = Version::ALL.map(|version| outcome().json(version));
    for (form, version) in forms.iter().zip(Version::ALL) {
        assert_eq!(form["cniVersion"], version.text());
        assert_eq!(form["ips"][0]["address"], "10.244.1.2/24");
        assert_eq!(form["interfaces"][1]["sandbox"], "/n");
        assert!(form["interfaces"][0].get("sandbox").is_none() && form["ips"][1].get("gateway").is_none());
        // Each can be read again, but for what older versions do not have.
        let read = Outcome::read(form, "it").unwrap();
        assert_eq!(read.ips, outcome().ips);
    }
    let [oldest, middle, newest] = &forms;
    assert_eq!((&oldest["ips"][0]["version"], &oldest["ips"][1]["version"]), (&json!("4"), &json!("6")));
    assert!(middle["ips"][0].get("version").is_none() && middle["interfaces"][0].get("mtu").is_none());
    assert!(middle["routes"][0].get("mtu").is_none());
    assert_eq!((&newest["interfaces"][0]["mtu"], &newest["routes"][0]["mtu"]), (&json!(1500), &json!(1400)));
}

#[test]
fn the_result_of_plugins_before_is_kept() {
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "net1", "sandbox": "/n", "unknown": 7 }],
        "ips": [{ "address": "192.0.2.1/24", "interface": 0 }],
        "dns": { "nameservers": ["192.0.2.53"] },
        "more": true,
    });
    let joined = append(&previous, &outcome(), Version::V1_0_0).unwrap();
    assert_eq!((joined["interfaces"].as_array().unwrap().len(), &joined["interfaces"][0]["unknown"]), (3, &json!(7)));
    assert_eq!((&joined["ips"][0]["interface"], &joined["ips"][1]["interface"]), (&json!(0), &json!(2)));
    assert_eq!((&joined["dns"], &joined["more"]), (&previous["dns"], &previous["more"]));
    assert_eq!(append(&json!("x"), &outcome(), Version::V1_0_0).unwrap_err().code, code::DECODING);
}

#[test]
fn results_of_other_plugins_are_judged() {
    assert_eq!(Outcome::read(&json!({ "ips": null, "dns": null }), "it").unwrap(), Outcome::default());
    for wrong in [json!(1), json!({ "ips": [{ "address": "x" }] }), json!({ "ips": {} }), json!({ "interfaces": [{}] })]
    {
        assert_eq!(Outcome::read(&wrong, "it").unwrap_err().code, code::DECODING, "{wrong}");
    }
    let many = json!({ "routes": vec![json!({ "dst": "0.0.0.0/0" }); 257] });
    assert_eq!(Outcome::read(&many, "it").unwrap_err().code, code::DECODING);
}

#[test]
fn an_error_has_the_form_of_the_specification() {
    let error = Failure::new(7, "no").with_details("because").json("1.0.0");
    assert_eq!(error, json!({ "cniVersion": "1.0.0", "code": 7, "msg": "no", "details": "because" }));
    assert_eq!(Failure::new(7, "no").json("1.0.0"), json!({ "cniVersion": "1.0.0", "code": 7, "msg": "no" }));
}

/// JSON of any shape, with the fields' own names among its keys.
fn some_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "1.1.0",
            "net",
            "10.0.0.0/24",
            "fd00::/64",
            "0.0.0.0/0",
            "cbr0",
            "host-local",
            "",
            "/x",
            "é"
        ])
        .prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "cniVersion",
        "name",
        "type",
        "ipam",
        "bridge",
        "mtu",
        "podCIDRs",
        "ranges",
        "subnet",
        "rangeStart",
        "gateway",
        "routes",
        "dst",
        "gw",
        "runtimeConfig",
        "ipRanges",
        "args",
        "cni",
        "ips",
        "mac",
        "prevResult",
        "interfaces",
        "cni.dev/valid-attachments",
        "containerID",
        "dns",
        "dataDir",
    ]);
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Everything that is done with a configuration before anything is done to the node.
fn look_at(text: Vec<u8>) {
    let Ok(config) = Config::read(text) else { return };
    let _ = config.judge();
    if let Ok(plan) = config.plan() {
        assert!(plan.sets().iter().all(|set| set.next(None, &HashSet::new()).is_some()), "a range without an address");
    }
    let _ = config.wanted(&Call::default());
    let _ = config.wanted_mac(&Call::default());
    let _ = config.valid_attachments();
    if let Some(previous) = &config.previous {
        let _ = append(previous, &outcome(), config.version);
    }
}

proptest! {
    #[test]
    fn no_input_makes_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        look_at(text);
    }

    #[test]
    fn no_json_makes_it_panic(value in some_json()) {
        let mut value = value;
        look_at(value.to_string().into_bytes());
        // The same with what is needed to get further.
        if let Value::Object(members) = &mut value {
            members.insert("cniVersion".into(), json!("1.1.0"));
            members.insert("name".into(), json!("net"));
            look_at(value.to_string().into_bytes());
        }
    }
}
