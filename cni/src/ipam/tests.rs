use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;

use ipnet::IpNet;
use proptest::prelude::*;

use super::range::{MOST_RANGES, Plan, Range};
use super::*;
use crate::protocol::code;

const BOOT: &str = "5b2c64d0-48c1-4471-9517-ad03da8b9aab";
const OTHER_BOOT: &str = "00000000-48c1-4471-9517-ad03da8b9aab";

fn range(subnet: &str) -> Range {
    Range::of(subnet.parse().unwrap(), None, None, None).unwrap()
}

fn plan(sets: &[&[&str]]) -> Plan {
    Plan::of(sets.iter().map(|set| set.iter().map(|subnet| range(subnet)).collect()).collect()).unwrap()
}

fn attachment(container: &str) -> Attachment {
    Attachment { network: "net".into(), container: container.into(), interface: "eth0".into() }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::of_boot(&directory.path().join("ipam"), BOOT);
    (directory, store)
}

fn addresses(reserved: &Reserved) -> Vec<String> {
    reserved.leases.iter().map(|lease| lease.address.to_string()).collect()
}

fn reserve(store: &Store, container: &str, plan: &Plan) -> Vec<String> {
    addresses(&store.reserve(&attachment(container), "cbr0", Some(plan), &[]).unwrap())
}

#[test]
fn a_pod_gets_an_address_of_each_family_and_never_the_gateways() {
    let (_directory, store) = store();
    let plan = plan(&[&["10.244.1.0/24"], &["fd00:10:244:1::/64"]]);
    assert_eq!(reserve(&store, "a", &plan), ["10.244.1.2/24", "fd00:10:244:1::2/64"]);
    assert_eq!(reserve(&store, "b", &plan), ["10.244.1.3/24", "fd00:10:244:1::3/64"]);
    let again = store.reserve(&attachment("a"), "cbr0", Some(&plan), &[]).unwrap();
    assert!(!again.fresh && addresses(&again) == ["10.244.1.2/24", "fd00:10:244:1::2/64"]);
    again.persist().unwrap();
}

#[test]
fn an_address_is_the_last_to_be_given_again() {
    let (_directory, store) = store();
    let plan = plan(&[&["10.0.0.0/29"]]);
    assert_eq!(reserve(&store, "a", &plan), ["10.0.0.2/29"]);
    for (container, expected) in [("b", 3), ("c", 4), ("d", 5), ("e", 6), ("f", 2), ("g", 3)] {
        assert!(store.release(&attachment(if container == "b" { "a" } else { "last" })).unwrap());
        let given = store.reserve(&attachment("last"), "cbr0", Some(&plan), &[]).unwrap();
        assert_eq!(addresses(&given), [format!("10.0.0.{expected}/29")], "{container}");
    }
}

#[test]
fn an_exhausted_range_is_refused_and_changes_nothing() {
    let (_directory, store) = store();
    let plan = plan(&[&["10.0.0.0/30"], &["fd00::/64"]]);
    assert!(store.has_room(&plan).is_ok());
    reserve(&store, "a", &plan);
    let refusal = store.reserve(&attachment("b"), "cbr0", Some(&plan), &[]).unwrap_err();
    assert_eq!(refusal.code, code::NO_ADDRESS);
    assert!(refusal.message.contains("10.0.0.1–10.0.0.2"), "{refusal}");
    assert_eq!(store.has_room(&plan).unwrap_err().code, code::NO_ADDRESS);
    assert_eq!(store.of_network("net").unwrap().len(), 1);
    assert!(store.release(&attachment("a")).unwrap() && !store.release(&attachment("a")).unwrap());
    reserve(&store, "b", &plan);
}

#[test]
fn two_networks_never_give_one_address() {
    let (_directory, store) = store();
    let plan = plan(&[&["10.0.0.0/24"]]);
    let other = Attachment { network: "other".into(), ..attachment("a") };
    assert_eq!(reserve(&store, "a", &plan), ["10.0.0.2/24"]);
    assert_eq!(addresses(&store.reserve(&other, "cbr1", Some(&plan), &[]).unwrap()), ["10.0.0.3/24"]);
    assert_eq!(store.of_network("other").unwrap()[0].attachment, other);
}

#[test]
fn an_address_can_be_asked_for_by_name() {
    let (_directory, store) = store();
    let plan = plan(&[&["10.0.0.0/24"], &["fd00::/64"]]);
    let ask = |container: &str, wanted: &[&str]| {
        let wanted: Vec<IpAddr> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        store.reserve(&attachment(container), "cbr0", Some(&plan), &wanted).map(|reserved| addresses(&reserved))
    };
    assert_eq!(ask("a", &["10.0.0.77"]).unwrap(), ["10.0.0.77/24", "fd00::2/64"]);
    assert_eq!(ask("b", &["fd00::77", "10.0.0.78"]).unwrap(), ["10.0.0.78/24", "fd00::77/64"]);
    for (wanted, word) in [("10.0.0.77", "another pod"), ("10.9.9.9", "none of the ranges"), ("10.0.0.1", "gateway")] {
        let refusal = ask("c", &[wanted]).unwrap_err();
        assert!(refusal.code == code::NO_ADDRESS && refusal.message.contains(word), "{refusal}");
    }
}

#[test]
fn reservations_of_an_earlier_boot_are_void() {
    let (directory, store) = store();
    let plan = plan(&[&["10.0.0.0/30"]]);
    reserve(&store, "a", &plan);
    let rebooted = Store::of_boot(&directory.path().join("ipam"), OTHER_BOOT);
    assert_eq!(rebooted.find(&attachment("a")).unwrap(), None);
    reserve(&rebooted, "b", &plan);
    assert!(!directory.path().join("ipam").join(BOOT).exists());
}

#[test]
fn what_is_not_there_can_be_released_and_makes_nothing() {
    let (directory, store) = store();
    assert!(!store.release(&attachment("a")).unwrap());
    assert!(store.of_network("net").unwrap().is_empty() && !directory.path().join("ipam").exists());
}

fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        }
        found.push(entry.file_name().to_string_lossy().into_owned());
    }
    found.sort();
    found
}

#[test]
fn rubbish_in_the_directory_does_no_harm() {
    let (directory, store) = store();
    let plan = plan(&[&["10.0.0.0/24"]]);
    reserve(&store, "a", &plan);
    let current = directory.path().join("ipam").join(BOOT);
    // A call that was killed while it wrote, and what nobody can have meant.
    for name in ["new", "readme", "0123456789abcdef@rubbish", "@", "0123456789abcdeg@10.0.0.3"] {
        fs::write(current.join(name), "{").unwrap();
    }
    fs::write(directory.path().join("ipam/last"), "[1,2").unwrap();
    assert_eq!(reserve(&store, "b", &plan), ["10.0.0.3/24"]);
    // A file whose content is lost still holds its address, and is still the attachment's.
    let file = files(&current).into_iter().find(|name| name.ends_with("@10.0.0.2")).unwrap();
    fs::write(current.join(file), "").unwrap();
    assert_eq!(reserve(&store, "c", &plan), ["10.0.0.4/24"]);
    assert!(store.release(&attachment("a")).unwrap());
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let (directory, _) = store();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let store = Store::of_boot(&file, BOOT);
    let refusal = store.reserve(&attachment("a"), "cbr0", Some(&plan(&[&["10.0.0.0/24"]])), &[]).unwrap_err();
    assert!(refusal.code == code::IO && refusal.message.contains("file"), "{refusal}");
}

#[test]
fn files_are_for_root_alone() {
    let (directory, store) = store();
    reserve(&store, "a", &plan(&[&["10.0.0.0/24"]]));
    let current = directory.path().join("ipam").join(BOOT);
    for entry in fs::read_dir(current).unwrap().map(Result::unwrap) {
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn many_at_once_never_share_an_address() {
    let (_directory, store) = store();
    let plan = plan(&[&["10.0.0.0/24"], &["fd00::/64"]]);
    let given = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for worker in 0..10 {
            let (store, plan, given) = (&store, &plan, &given);
            scope.spawn(move || {
                for number in 0..25 {
                    let got = reserve(store, &format!("c{worker}-{number}"), plan);
                    given.lock().unwrap().extend(got);
                }
            });
        }
    });
    let given = given.into_inner().unwrap();
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), 500);
    assert_eq!(store.of_network("net").unwrap().len(), 250);
}

#[test]
fn ranges_that_cannot_be_right_are_refused_with_a_sentence() {
    let of = |subnet: &str, start: Option<&str>, end: Option<&str>, gateway: Option<&str>| {
        let address = |text: Option<&str>| text.map(|text| text.parse::<IpAddr>().unwrap());
        Range::of(subnet.parse().unwrap(), address(start), address(end), address(gateway))
    };
    for (subnet, start, end, gateway, word) in [
        ("10.0.0.0/31", None, None, None, "too small"),
        ("10.0.0.1/32", None, None, None, "too small"),
        ("fd00::/127", None, None, None, "too small"),
        ("0.0.0.0/0", None, None, None, "every address"),
        ("10.0.0.0/24", Some("10.0.1.1"), None, None, "rangeStart"),
        ("10.0.0.0/24", None, Some("10.0.0.255"), None, "rangeEnd"),
        ("10.0.0.0/24", None, None, Some("10.0.0.0"), "gateway"),
        ("10.0.0.0/24", None, None, Some("fd00::1"), "gateway"),
        ("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8"), None, "ends before"),
        ("10.0.0.0/24", Some("10.0.0.1"), Some("10.0.0.1"), None, "the only address"),
    ] {
        let refusal = of(subnet, start, end, gateway).unwrap_err();
        assert!(refusal.code == code::CONFIGURATION && refusal.message.contains(word), "{refusal}");
    }
    assert_eq!(of("fd00::/126", None, None, None).unwrap().last, "fd00::3".parse::<IpAddr>().unwrap());
    let overlapping = Plan::of(vec![vec![range("10.0.0.0/24")], vec![range("10.0.0.128/25")]]).unwrap_err();
    assert!(overlapping.message.contains("10.0.0.1–10.0.0.254 and 10.0.0.129–10.0.0.254 overlap"), "{overlapping}");
    assert!(Plan::of(vec![vec![range("10.0.0.0/24"), range("fd00::/64")]]).unwrap_err().message.contains("two sets"));
    assert!(Plan::of(vec![vec![], vec![]]).unwrap_err().message.contains("podCIDRs"));
    let many = (0..=MOST_RANGES).map(|number| range(&format!("10.{number}.0.0/24"))).collect();
    assert!(Plan::of(vec![many]).unwrap_err().message.contains("at most 64"));
}

/// A slow, obvious IPAM: all addresses in a row, and the first free one behind the last that was given.
#[derive(Default)]
struct Model {
    given: BTreeMap<String, IpAddr>,
    last: Option<IpAddr>,
}

impl Model {
    fn reserve(&mut self, container: &str, row: &[IpAddr], wanted: Option<IpAddr>) -> Option<IpAddr> {
        if let Some(known) = self.given.get(container) {
            return Some(*known);
        }
        let start = self.last.and_then(|last| row.iter().position(|address| *address == last)).map_or(0, |at| at + 1);
        let mut round = row.iter().cycle().skip(start).take(row.len());
        let is_free = |address: &IpAddr| !self.given.values().any(|given| given == address);
        let found = match wanted {
            Some(wanted) => Some(wanted).filter(|wanted| row.contains(wanted)).filter(is_free),
            None => round.find(|address| is_free(address)).copied(),
        }?;
        self.given.insert(container.to_owned(), found);
        self.last = Some(found);
        Some(found)
    }
}

/// Ranges of one family that do not overlap, from small numbers: a subnet of 16 or 8 hosts, and which part of it.
fn some_ranges() -> impl Strategy<Value = Vec<Range>> {
    let one = (28u8..=29, 0u32..6, 0u32..6, 0u32..6);
    (proptest::collection::vec(one, 1..4), any::<bool>()).prop_map(|(parts, v6)| {
        let build = |(index, (length, start, end, gateway)): (usize, (u8, u32, u32, u32))| {
            let text = |host: u32| {
                if v6 { format!("fd00::{index}:0:{:x}", host) } else { format!("10.0.{index}.{host}") }
            };
            let address = |host: u32| text(host).parse::<IpAddr>().unwrap();
            let length = if v6 { length + 96 } else { length };
            let subnet: IpNet = format!("{}/{length}", text(0)).parse().unwrap();
            Range::of(subnet, Some(address(1 + start)), Some(address(1 + start.max(end))), Some(address(1 + gateway)))
                .ok()
        };
        parts.into_iter().enumerate().filter_map(build).collect()
    })
}

/// Every address of the ranges that may be given, one after the other.
fn row_of(ranges: &[Range]) -> Vec<IpAddr> {
    let hosts = ranges.iter().flat_map(|range| range.subnet.hosts().filter(|host| range.contains(*host)));
    hosts.filter(|host| ranges.iter().all(|range| range.gateway != *host)).collect()
}

#[derive(Clone, Debug)]
enum Action {
    Reserve(u8),
    Ask(u8, prop::sample::Index),
    Release(u8),
    Reboot,
}

fn some_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (0u8..24).prop_map(Action::Reserve),
        2 => (0u8..24, any::<prop::sample::Index>()).prop_map(|(container, index)| Action::Ask(container, index)),
        6 => (0u8..24).prop_map(Action::Release),
        1 => Just(Action::Reboot),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is reserved and released, on the disk there is what the model says.
    #[test]
    fn the_store_does_what_the_model_does(
        ranges in some_ranges().prop_filter("some address", |ranges| !row_of(ranges).is_empty()),
        actions in proptest::collection::vec(some_action(), 1..60),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let row = row_of(&ranges);
        let plan = Plan::of(vec![ranges]).unwrap();
        let mut model = Model::default();
        let mut boots = 0;
        for action in actions {
            let store = Store::of_boot(directory.path(), &format!("{boots:08x}{}", &BOOT[8..]));
            match action {
                Action::Reserve(container) => {
                    let name = container.to_string();
                    let given = store.reserve(&attachment(&name), "cbr0", Some(&plan), &[]).ok();
                    let given = given.map(|reserved| reserved.leases[0].address.addr());
                    prop_assert_eq!(given, model.reserve(&name, &row, None));
                }
                Action::Ask(container, index) => {
                    let (name, wanted) = (container.to_string(), row[index.index(row.len())]);
                    let given = store.reserve(&attachment(&name), "cbr0", Some(&plan), &[wanted]).ok();
                    let given = given.map(|reserved| reserved.leases[0].address.addr());
                    prop_assert_eq!(given, model.reserve(&name, &row, Some(wanted)));
                }
                Action::Release(container) => {
                    let name = container.to_string();
                    let released = store.release(&attachment(&name)).unwrap();
                    prop_assert_eq!(released, model.given.remove(&name).is_some());
                }
                Action::Reboot => {
                    boots += 1;
                    model.given.clear();
                }
            }
            let store = Store::of_boot(directory.path(), &format!("{boots:08x}{}", &BOOT[8..]));
            let entries = store.of_network("net").unwrap();
            let on_disk: BTreeMap<String, IpAddr> =
                entries.into_iter().map(|entry| (entry.attachment.container, entry.addresses[0])).collect();
            prop_assert_eq!(&on_disk, &model.given);
            prop_assert_eq!(store.has_room(&plan).is_ok(), model.given.len() < row.len());
        }
    }
}
