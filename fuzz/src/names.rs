//! Names of pods: files of the container runtime's, and aliases of interfaces.

use podlane::names::cni::MOST_INTERFACES;
use podlane::names::{PodName, interface_of, is_name};
use podlane::outside;

use crate::Seeds;

/// Reads it as such a file, as an alias, and as a word by which somebody means a pod.
///
/// # Panics
/// If a name comes out that is none, or more than a limit allows.
pub fn run(bytes: &[u8]) {
    if let Some((pod, interfaces)) = outside::cni_result(bytes) {
        check(&pod.name);
        assert!(interfaces.len() <= MOST_INTERFACES && pod.addresses.len() <= MOST_INTERFACES);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(name) = PodName::from_alias(text) {
        check(&name);
        assert_eq!(name.to_string(), text);
        let ports = [("veth0".to_owned(), Some(name)), ("veth1".to_owned(), None)];
        let found = interface_of(text, &ports).expect("only one has this name").expect("somebody has it");
        assert_eq!(found, if text == "veth1" { "veth1" } else { "veth0" });
    }
}

fn check(name: &PodName) {
    assert!(is_name(&name.pod) && name.namespace.as_deref().is_none_or(is_name));
}

/// Files as libcni writes them, and aliases.
pub fn seeds() -> Seeds {
    let whole = r#"{"kind":"cniCacheV1","containerId":"0a1b","config":"eyJ9","ifName":"eth0","networkName":"pods",
"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"],["K8S_POD_INFRA_CONTAINER_ID","0a1b"]],
"capabilityArgs":{},"result":{"cniVersion":"1.0.0","dns":{},
"interfaces":[{"mac":"02:00:00:00:00:01","name":"cbr0"},{"mac":"02:00:00:00:00:02","name":"veth12ab"},
{"mac":"02:00:00:00:00:03","name":"eth0","sandbox":"/var/run/netns/x"}],
"ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":2},{"address":"fd00:10:244:1::2/64","interface":2}]}}"#;
    let texts = [
        ("cni", whole.to_owned()),
        ("cni-old", whole.replace("cniCacheV1", "cniCacheV0")),
        ("cni-no-lists", r#"{"kind":"cniCacheV1","cniArgs":null,"result":{"interfaces":null,"ips":null}}"#.to_owned()),
        ("cni-bad-name", whole.replace("web-0", "web 0\\u001b[2J")),
        ("cni-bad-address", whole.replace("10.244.1.2/24", "10.244.1.2/99")),
        ("alias", "shop/web-0".to_owned()),
        ("alias-plain", "web-0".to_owned()),
        ("alias-remark", "the uplink, do not touch".to_owned()),
        ("alias-two", "a/b/c".to_owned()),
    ];
    texts.map(|(name, text)| (name.to_owned(), text.into_bytes())).into()
}
