use ipnet::IpNet;
use podlane_dataplane::table::Translation;
use proptest::prelude::*;

use super::rules::{Family, Table, Taken, judge};
use super::{Rules, legacy};

const PODS: [&str; 2] = ["veth1", "veth2"];

fn cluster() -> Vec<IpNet> {
    ["10.244.0.0/16", "fd00:10:244::/48"].map(|network| network.parse().unwrap()).into()
}

fn taken(cluster: &[IpNet]) -> Taken<'_> {
    Taken { bridge: "cbr0", uplinks: &["eth0"], pods: &PODS, cluster, bridged: [true, false] }
}

/// The filter table of a node with these rules; a line that begins with ':' is a chain.
fn filter(policy: &str, rules: &[&str]) -> Vec<Table> {
    let text = format!("*filter\n:INPUT DROP [0:0]\n:FORWARD {policy} [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
    legacy::parse(Family::Ip, &text)
}

fn sentences(policy: &str, rules: &[&str]) -> Vec<String> {
    let cluster = cluster();
    judge(&filter(policy, rules), &taken(&cluster)).sentences
}

#[test]
fn what_kube_proxy_and_flannel_write_is_harmless() {
    let kube = [
        ":KUBE-FORWARD - [0:0]",
        ":KUBE-SERVICES - [0:0]",
        "-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD",
        "-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
    ];
    assert_eq!(sentences("ACCEPT", &kube), [""; 0]);
    // Docker's policy, and flannel's acceptance of everything between pods.
    let flannel = [
        ":FLANNEL-FWD - [0:0]",
        "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD",
        "-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
        "-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
    ];
    assert_eq!(sentences("DROP", &flannel), [""; 0]);
    let docker = ["-A FORWARD -i docker0 ! -o docker0 -j ACCEPT", "-A FORWARD -o docker0 -j DROP"];
    assert_eq!(sentences("ACCEPT", &docker), [""; 0]);
    let told = sentences("DROP", &docker);
    assert!(told.len() == 1 && told[0].contains("chain FORWARD (hook forward)"), "{told:?}");
    assert!(told[0].ends_with("(policy drop)"), "{told:?}");
}

#[test]
fn what_policies_write_is_found() {
    for (rules, what) in [
        (vec!["-A FORWARD -s 10.244.1.2/32 -d 10.244.1.3/32 -j DROP"], "DROP in chain FORWARD"),
        (vec!["-A FORWARD -p udp -m udp --dport 53 -j NFQUEUE --queue-num 1"], "NFQUEUE in chain FORWARD"),
        (
            vec![
                ":cali-FORWARD - [0:0]",
                ":cali-to-wl-dispatch - [0:0]",
                "-A FORWARD -m comment --comment \"cali:wUHhoiAYhphO9Mso\" -j cali-FORWARD",
                "-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000",
                "-A cali-FORWARD -o cbr+ -g cali-to-wl-dispatch",
                "-A cali-to-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP",
            ],
            "DROP in chain cali-to-wl-dispatch",
        ),
        (
            vec![
                ":KUBE-ROUTER-FORWARD - [0:0]",
                ":KUBE-POD-FW-ABC - [0:0]",
                "-A FORWARD -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-FORWARD",
                "-A KUBE-ROUTER-FORWARD -d 10.244.1.2/32 -j KUBE-POD-FW-ABC",
                "-A KUBE-POD-FW-ABC -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable",
            ],
            "REJECT in chain KUBE-POD-FW-ABC",
        ),
        (vec!["-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"], "target TCPMSS"),
        (vec!["-A FORWARD -m conntrack ! --ctstate INVALID -j DROP"], "DROP"),
        (vec!["-A FORWARD -j CT --zone 3"], "target CT with a zone"),
        (vec!["-A FORWARD -j nowhere"], "chain nowhere is too deep or unknown"),
        (vec![":a - [0:0]", ":b - [0:0]", "-A FORWARD -j a", "-A a -j b", "-A b -g a"], "too deep"),
    ] {
        let told = sentences("ACCEPT", &rules);
        assert!(told.len() == 1 && told[0].contains(what), "{rules:?}: {told:?}");
    }
}

#[test]
fn rules_about_single_pods_concern_their_ports_only() {
    let cluster = cluster();
    let mut tables = filter("ACCEPT", &["-A FORWARD -i veth1 -j DROP"]);
    assert_eq!(judge(&tables, &taken(&cluster)).sentences, [""; 0], "IP sees the bridge, not its ports");
    tables[0].family = Family::Bridge;
    // Of a bridge, its own end would see what is routed.
    tables[0].chains.remove("INPUT");
    let concerned = judge(&tables, &taken(&cluster));
    assert_eq!((concerned.routed, concerned.bridged), ([false; 2], false));
    assert_eq!(concerned.ports.keys().collect::<Vec<_>>(), ["veth1"]);
}

/// What is found in the table `nat` of a node with these rules.
fn translating(rules: &[&str]) -> Vec<String> {
    let text = format!("*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
    let cluster = cluster();
    judge(&legacy::parse(Family::Ip, &text), &taken(&cluster)).sentences
}

#[test]
fn translations_of_other_addresses_than_pods_are_harmless() {
    let kube = [
        ":CNI-DN-1 - [0:0]",
        ":CNI-HOSTPORT-DNAT - [0:0]",
        ":DOCKER - [0:0]",
        ":KUBE-MARK-MASQ - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC-1 - [0:0]",
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
        "-A PREROUTING -i docker0 -p tcp -j REDIRECT --to-ports 8080",
        "-A POSTROUTING -s 10.244.1.0/24 ! -d 224.0.0.0/4 -j MASQUERADE",
        "-A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 8080 -j CNI-DN-1",
        "-A CNI-DN-1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.5:80",
        "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80",
        "-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-1",
        "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
        "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-1",
        "-A KUBE-SVC-1 -j DNAT --to-destination 10.244.1.5:80",
    ];
    assert_eq!(translating(&kube), [""; 0]);
}

#[test]
fn translations_of_pods_addresses_are_found() {
    for (rules, what) in [
        (vec!["-A PREROUTING -d 10.244.1.2/32 -j DNAT --to-destination 10.244.1.3"], "target DNAT in chain PREROUTING"),
        (vec!["-A PREROUTING -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353"], "target REDIRECT"),
        (
            vec![
                ":KUBE-SERVICES - [0:0]",
                "-A PREROUTING -j KUBE-SERVICES",
                "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-1",
                "-A KUBE-SERVICES -d 10.244.9.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-2",
            ],
            "service 10.244.9.1 in chain KUBE-SERVICES",
        ),
        (
            vec![
                ":OURS - [0:0]",
                "-A PREROUTING -m addrtype ! --dst-type LOCAL -j OURS",
                "-A OURS -p tcp -j DNAT --to-destination 10.244.1.3",
            ],
            "target DNAT in chain OURS",
        ),
    ] {
        let told = translating(&rules);
        assert!(told.len() == 1 && told[0].contains(what), "{rules:?}: {told:?}");
        let beginning = "iptables-legacy table ip nat chain PREROUTING (hook prerouting) has rules that may send connections \
                         between pods elsewhere";
        assert!(told[0].starts_with(beginning), "{told:?}");
    }
}

#[test]
fn effects_follow_from_rules() {
    let cluster = cluster();
    let taken = taken(&cluster);
    let mut rules = Rules { tables: filter("DROP", &[]), ..Rules::default() };
    let effects = rules.effects(&taken, true, false);
    assert_eq!((effects.translation, effects.is_blind), (Translation::None, false));
    // br_netfilter hands IPv4 to the tables here, so bridged frames are concerned as well.
    assert_eq!((effects.left.routed, effects.left.bridged), ([true, false], true));
    assert!(effects.notes[0].ends_with("what they concern is left to the kernel."), "{:?}", effects.notes);
    let effects = rules.effects(&taken, true, true);
    assert_eq!(effects.left, Default::default());
    assert!(effects.notes[0].ends_with("bypass_netfilter: they are bypassed."), "{:?}", effects.notes);
    rules = Rules { translating: vec!["table ip nat chain PREROUTING".to_owned()], ..Rules::default() };
    assert_eq!(rules.effects(&taken, true, false).translation, Translation::Strict);
    let blind = rules.effects(&taken, false, true);
    assert!(blind.is_blind && blind.notes[0].contains("table ip nat chain PREROUTING"), "{blind:?}");
    rules.is_liberal = true;
    assert_eq!(rules.effects(&taken, true, false).translation, Translation::Liberal);
    rules.has_ipvs = true;
    assert!(rules.effects(&taken, true, true).is_blind);
    rules = Rules { unknown: vec!["nobody knows".to_owned()], ..Rules::default() };
    let effects = rules.effects(&taken, true, false);
    assert!(effects.left.is_all() && effects.notes[0].starts_with("Nobody knows"), "{effects:?}");
    let strict = ["-A FORWARD -m conntrack --ctstate INVALID -j DROP"];
    rules = Rules { tables: filter("ACCEPT", &strict), ..Rules::default() };
    let effects = rules.effects(&taken, true, false);
    assert_eq!((effects.translation, effects.notes.len()), (Translation::Strict, 0));
}

proptest! {
    #[test]
    fn any_output_of_iptables_save_is_read(lines in proptest::collection::vec("[-:*A-Za-z0-9 !\"\\\\./+]{0,60}", 0..40)) {
        let cluster = cluster();
        judge(&legacy::parse(Family::Ip, &lines.join("\n")), &taken(&cluster));
    }
}
