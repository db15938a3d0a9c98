use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::cni::{CniNames, CniPod, MOST_FILE_BYTES, MOST_FILES, MOST_INTERFACES};
use super::*;

/// A file as libcni writes it for a pod of Kubernetes.
pub(crate) fn cached(namespace: &str, pod: &str, interface: &str) -> Value {
    json!({
        "kind": "cniCacheV1",
        "containerId": "4f5e",
        "config": "ewogICJuYW1lIjogImNicjAiCn0=",
        "ifName": "eth0",
        "networkName": "cbr0",
        "netns": "/var/run/netns/cni-1",
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", namespace],
            ["K8S_POD_NAME", pod],
            ["K8S_POD_INFRA_CONTAINER_ID", "4f5e"],
        ],
        "result": {
            "cniVersion": "1.0.0",
            "dns": {},
            "interfaces": [
                { "name": "cni0", "mac": "02:00:00:00:00:01" },
                { "name": interface, "mac": "02:00:00:00:00:02" },
                { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/var/run/netns/cni-1" },
            ],
            "ips": [{ "address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 2 }, { "address": "what" },
                { "address": "fd00:10:244:1::2/64" }],
        },
    })
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn write(directory: &Path, file: &str, content: impl AsRef<[u8]>) {
    fs::write(directory.join(file), content).expect("a file");
}

fn name(namespace: Option<&str>, pod: &str, by: NamedBy) -> PodName {
    PodName { namespace: namespace.map(str::to_owned), pod: pod.to_owned(), by }
}

#[test]
fn a_pod_is_found_by_the_host_end_of_its_veth() {
    let directory = directory();
    write(directory.path(), "cbr0-4f5e-eth0", cached("shop", "cart-0", "veth1a").to_string());
    let mut unnamed = cached("", "", "veth2");
    unnamed["cniArgs"] = json!([["IgnoreUnknown", "1"]]);
    write(directory.path(), "cbr0-5a-eth0", unnamed.to_string());
    let names = CniNames::read(directory.path()).unwrap();
    let pod = CniPod {
        name: name(Some("shop"), "cart-0", NamedBy::Cni),
        addresses: vec!["10.244.1.2".parse().unwrap(), "fd00:10:244:1::2".parse().unwrap()],
        macs: vec!["02:00:00:00:00:03".parse().unwrap()],
    };
    assert_eq!(names.get("veth1a"), Some(&pod));
    assert_eq!((names.get("veth2"), names.get("eth0"), names.left_out), (None, None, 1));
}

#[test]
fn the_newer_of_two_files_is_right() {
    let directory = directory();
    for (file, pod, age) in [("a", "young", 1), ("b", "old", 100), ("c", "older", 200)] {
        write(directory.path(), file, cached("n", pod, "veth1").to_string());
        let file = fs::File::options().write(true).open(directory.path().join(file)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    let names = CniNames::read(directory.path()).unwrap();
    assert_eq!(names.get("veth1").map(|pod| pod.name.pod.as_str()), Some("young"));
}

/// Every file is left out, none is waited for, and the good one among them is read.
#[test]
fn rubbish_costs_nothing_but_names() {
    let directory = directory();
    let path = directory.path();
    let mut bad: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("half", br#"{"kind":"cniCacheV1","cniArgs":[["#.to_vec()),
        ("binary", vec![0xff; 1000]),
        ("deep", [b"[".repeat(100_000), b"]".repeat(100_000)].concat()),
        ("large", vec![b' '; MOST_FILE_BYTES as usize + 1]),
        ("number", b"7".to_vec()),
    ];
    let spoilt = |spoil: &dyn Fn(&mut Value)| {
        let mut value = cached("n", "p", "vethbad");
        spoil(&mut value);
        value.to_string().into_bytes()
    };
    bad.push(("kind", spoilt(&|value| value["kind"] = json!("cniCacheV9"))));
    bad.push(("escape", spoilt(&|value| value["cniArgs"][2][1] = json!("\u{1b}[2Jp"))));
    bad.push(("newline", spoilt(&|value| value["cniArgs"][1][1] = json!("n\nroot"))));
    bad.push(("slash", spoilt(&|value| value["cniArgs"][2][1] = json!("a/b"))));
    bad.push(("long", spoilt(&|value| value["cniArgs"][2][1] = json!("x".repeat(MOST_BYTES + 1)))));
    bad.push(("nameless", spoilt(&|value| value["cniArgs"] = Value::Null)));
    bad.push(("arguments", spoilt(&|value| value["cniArgs"] = json!("K8S_POD_NAME=p"))));
    bad.push(("result", spoilt(&|value| value["result"] = json!(7))));
    for (file, content) in &bad {
        write(path, file, content);
    }
    fs::create_dir(path.join("directory")).unwrap();
    nix::unistd::mkfifo(&path.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", path.join("zero")).unwrap();
    symlink(path.join("good"), path.join("link")).unwrap();
    let mut odd = cached("shop", "cart-0", "veth1a");
    odd["result"]["interfaces"][1]["name"] = json!("vethgood");
    odd["more"] = json!({ "of": ["a", "later", "version"] });
    write(path, "good", odd.to_string());
    let names = CniNames::read(path).unwrap();
    assert_eq!(names.left_out, bad.len() + 4);
    assert_eq!((names.get("vethbad"), names.len()), (None, 2), "the good file's, with its bridge");
    assert_eq!(names.get("vethgood").map(|pod| pod.name.to_string()).as_deref(), Some("shop/cart-0"));
}

#[test]
fn much_is_read_in_part() {
    let directory = directory();
    for number in 0..MOST_FILES + 10 {
        write(directory.path(), &number.to_string(), cached("n", "p", &format!("veth{number}")).to_string());
    }
    let names = CniNames::read(directory.path()).unwrap();
    assert_eq!(names.len(), MOST_FILES + 1, "one for each file, and the bridge");
    let mut wide = cached("n", "p", "veth");
    wide["result"]["interfaces"] = (0..4000).map(|number| json!({ "name": format!("veth{number}") })).collect();
    let other = self::directory();
    write(other.path(), "wide", wide.to_string());
    assert_eq!(CniNames::read(other.path()).unwrap().len(), MOST_INTERFACES);
}

#[test]
fn a_directory_that_is_not_there_is_an_error() {
    assert!(CniNames::read(Path::new("/nonexistent/results")).is_err());
}

#[test]
fn an_alias_is_a_name_or_a_remark() {
    let of = |alias: &str| PodName::from_alias(alias).map(|name| name.to_string());
    assert_eq!(of("shop/cart-0").as_deref(), Some("shop/cart-0"));
    assert_eq!(of("cart-0").as_deref(), Some("cart-0"));
    for remark in ["", "/", "shop/", "/cart", "a/b/c", "the cart of the shop", "a\u{1b}[31m", "p\u{202e}q", "x\n"] {
        assert_eq!(of(remark), None, "{remark:?}");
    }
}

#[test]
fn a_person_names_a_port_in_several_ways() {
    let pod = |namespace, pod| Some(name(Some(namespace), pod, NamedBy::Cni));
    let ports = [
        ("veth1".to_owned(), pod("shop", "cart-0")),
        ("veth2".to_owned(), pod("test", "cart-0")),
        ("veth3".to_owned(), pod("test", "veth1")),
        ("veth4".to_owned(), pod("test", "web")),
        ("eth0".to_owned(), None),
    ];
    let meant = |word| interface_of(word, &ports).map(|found| found.unwrap_or_default());
    assert_eq!(meant("veth2").as_deref(), Ok("veth2"));
    assert_eq!(meant("veth1").as_deref(), Ok("veth1"), "an interface's own name wins");
    assert_eq!(meant("test/veth1").as_deref(), Ok("veth3"));
    assert_eq!(meant("shop/cart-0").as_deref(), Ok("veth1"));
    assert_eq!(meant("web").as_deref(), Ok("veth4"));
    assert_eq!(meant("shop/web").as_deref(), Ok(""));
    let error = meant("cart-0").unwrap_err().to_string();
    assert!(error.contains("veth1, veth2") && error.contains("namespace/pod"), "{error}");
}

/// Files that come, change and go are followed, and so is a directory that is made later.
#[test]
fn changes_are_followed() {
    let directory = directory();
    let results = directory.path().join("results");
    let names = Names::start(Some(results.clone()));
    let interface = |alias| Interface { ifindex: 7, name: "veth1", alias };
    let shown = |alias| names.of(interface(alias)).map(|name| name.to_string()).unwrap_or_default();
    let becomes = |expected: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while shown("") != expected {
            assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", shown(""));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    becomes("");
    fs::create_dir(&results).unwrap();
    write(&results, "a", cached("shop", "cart-0", "veth1").to_string());
    names.refresh();
    becomes("shop/cart-0");
    assert_eq!(shown("test/web"), "test/web", "the alias wins");
    assert_eq!(shown("some remark"), "shop/cart-0");
    write(&results, "a", cached("shop", "cart-1", "veth1").to_string());
    becomes("shop/cart-1");
    fs::rename(results.join("a"), directory.path().join("a")).unwrap();
    becomes("");
    fs::rename(directory.path().join("a"), results.join("b")).unwrap();
    becomes("shop/cart-1");
    fs::remove_dir_all(&results).unwrap();
    becomes("");
    fs::create_dir(&results).unwrap();
    write(&results, "a", cached("shop", "cart-2", "veth1").to_string());
    names.refresh();
    becomes("shop/cart-2");
}

proptest! {
    /// Whatever a file holds, what is told of it is a name.
    #[test]
    fn only_names_are_told(content in proptest::collection::vec(any::<u8>(), 0..200), value in "\\PC{0,40}|.{0,40}") {
        let directory = directory();
        write(directory.path(), "bytes", &content);
        write(directory.path(), "text", cached(&value, &value, "veth1").to_string());
        let names = CniNames::read(directory.path()).unwrap();
        match names.get("veth1") {
            Some(pod) => {
                prop_assert!(is_name(&value));
                prop_assert_eq!(pod.name.to_string(), format!("{}/{}", value, value));
            }
            None => prop_assert!(!is_name(&value)),
        }
        if let Some(name) = PodName::from_alias(&value) {
            prop_assert!(is_name(&name.pod) && name.namespace.as_deref().is_none_or(is_name));
        }
    }
}
