//! What is to be done with a directory of pins that was found.

use super::Layout;
use crate::bpf::XdpMode;
use crate::bpf::sys::{LinkKind, LinkState};

/// Where a link is attached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Hook {
    /// XDP in a mode.
    Xdp(XdpMode),
    /// tcx ingress.
    Tcx,
}

impl Hook {
    fn kind(self) -> LinkKind {
        match self {
            Hook::Xdp(_) => LinkKind::Xdp,
            Hook::Tcx => LinkKind::Tcx,
        }
    }
}

/// What an entry of the directory is, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// All maps of a layout.
    Maps(Layout),
    /// Maps of a layout that were not all pinned.
    Unfinished(Layout),
    /// A link, and the interface that it is on.
    Link(Hook, u32),
    /// A filter of a clsact qdisc on this interface.
    Filter(u32),
    /// A clsact qdisc on this interface that is ours.
    Qdisc(u32),
    /// Generic receive offload of this interface was switched on by us.
    Gro(u32),
    /// Nothing that this version knows.
    Unknown,
}

const MAPS: &str = "maps-";
const UNFINISHED: &str = "unfinished-";
const NATIVE: &str = "xdp-native-";
const GENERIC: &str = "xdp-generic-";
const TCX: &str = "tcx-";
const FILTER: &str = "filter-";
const QDISC: &str = "qdisc-";
const GRO: &str = "gro-";

impl Entry {
    /// Reads a name. Only what [`Entry::name`] would write is known.
    pub fn parse(name: &str) -> Self {
        let layout = |text: &str| u64::from_str_radix(text, 16).ok().map(Layout);
        let index = |text: &str| text.parse::<u32>().ok();
        let after = |prefix: &str| name.strip_prefix(prefix);
        let entry = after(MAPS)
            .and_then(layout)
            .map(Entry::Maps)
            .or_else(|| after(UNFINISHED).and_then(layout).map(Entry::Unfinished))
            .or_else(|| after(NATIVE).and_then(index).map(|index| Entry::Link(Hook::Xdp(XdpMode::Native), index)))
            .or_else(|| after(GENERIC).and_then(index).map(|index| Entry::Link(Hook::Xdp(XdpMode::Generic), index)))
            .or_else(|| after(TCX).and_then(index).map(|index| Entry::Link(Hook::Tcx, index)))
            .or_else(|| after(FILTER).and_then(index).map(Entry::Filter))
            .or_else(|| after(QDISC).and_then(index).map(Entry::Qdisc))
            .or_else(|| after(GRO).and_then(index).map(Entry::Gro));
        entry.filter(|entry| entry.name() == name).unwrap_or(Entry::Unknown)
    }

    /// Its name; empty for [`Entry::Unknown`].
    pub fn name(self) -> String {
        match self {
            Entry::Maps(layout) => format!("{MAPS}{layout}"),
            Entry::Unfinished(layout) => format!("{UNFINISHED}{layout}"),
            Entry::Link(Hook::Xdp(XdpMode::Native), ifindex) => format!("{NATIVE}{ifindex}"),
            Entry::Link(Hook::Xdp(XdpMode::Generic), ifindex) => format!("{GENERIC}{ifindex}"),
            Entry::Link(Hook::Tcx, ifindex) => format!("{TCX}{ifindex}"),
            Entry::Filter(ifindex) => format!("{FILTER}{ifindex}"),
            Entry::Qdisc(ifindex) => format!("{QDISC}{ifindex}"),
            Entry::Gro(ifindex) => format!("{GRO}{ifindex}"),
            Entry::Unknown => String::new(),
        }
    }
}

/// An entry of the directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// What is known of it besides.
    pub kind: Kind,
}

/// What is known of an entry besides its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Maps.
    Maps {
        /// Whether none is missing.
        complete: bool,
    },
    /// A link; `None` if the kernel does not say what it is.
    Link(Option<LinkState>),
    /// Something else.
    Other,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The maps of the own layout are there and to be used; otherwise they are to be made.
    pub adopts_maps: bool,
    /// Links to be used, by updating them to the own programs.
    pub links: Vec<(Hook, u32)>,
    /// Interfaces with a clsact filter, which is replaced as a whole.
    pub filters: Vec<u32>,
    /// Interfaces whose generic receive offload is to be switched off when they need it no longer.
    pub gro: Vec<u32>,
    /// What serves nobody: half of a set of maps, links of interfaces that are gone, what nobody knows. To be removed at once.
    pub rubbish: Vec<String>,
    /// Maps of other layouts, which programs still use: to be removed when all links have been updated.
    pub outdated: Vec<String>,
}

/// What is to be done with a directory with these entries by a daemon of this layout.
pub fn plan(own: Layout, found: &[Found]) -> Plan {
    let mut plan = Plan::default();
    for Found { name, kind } in found {
        match (Entry::parse(name), kind) {
            (Entry::Maps(layout), Kind::Maps { complete: true }) if layout == own => plan.adopts_maps = true,
            (Entry::Maps(layout), Kind::Maps { complete: true }) if layout != own => plan.outdated.push(name.clone()),
            (Entry::Link(hook, ifindex), Kind::Link(Some(state)))
                if state.kind == hook.kind() && state.ifindex == ifindex =>
            {
                plan.links.push((hook, ifindex));
            }
            (Entry::Filter(ifindex), _) => plan.filters.push(ifindex),
            (Entry::Gro(ifindex), _) => plan.gro.push(ifindex),
            (Entry::Qdisc(_), _) => {}
            _ => plan.rubbish.push(name.clone()),
        }
    }
    // A mark is of the interface that our program is on. Without a link there the index is another interface's by now, or
    // nobody's.
    let (links, filters) = (&plan.links, &plan.filters);
    let served = |ifindex: &u32| links.iter().any(|(_, link)| link == ifindex) || filters.contains(ifindex);
    let (gro, gone): (Vec<u32>, Vec<u32>) = plan.gro.iter().copied().partition(served);
    plan.rubbish.extend(gone.into_iter().map(|ifindex| Entry::Gro(ifindex).name()));
    plan.gro = gro;
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Layout = Layout(0xa);
    const OTHER: Layout = Layout(0xb);
    const NATIVE_HOOK: Hook = Hook::Xdp(XdpMode::Native);

    fn maps(layout: Layout, complete: bool) -> Found {
        Found { name: Entry::Maps(layout).name(), kind: Kind::Maps { complete } }
    }

    fn link(hook: Hook, ifindex: u32, state: Option<(LinkKind, u32)>) -> Found {
        let state = state.map(|(kind, ifindex)| LinkState { kind, ifindex, program: 1 });
        Found { name: Entry::Link(hook, ifindex).name(), kind: Kind::Link(state) }
    }

    fn other(name: &str) -> Found {
        Found { name: name.to_owned(), kind: Kind::Other }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let entries = [
            Entry::Maps(Layout(u64::MAX)),
            Entry::Unfinished(Layout(7)),
            Entry::Link(NATIVE_HOOK, 12),
            Entry::Link(Hook::Xdp(XdpMode::Generic), u32::MAX),
            Entry::Link(Hook::Tcx, 3),
            Entry::Filter(4),
            Entry::Qdisc(5),
            Entry::Gro(6),
        ];
        for entry in entries {
            assert_eq!(Entry::parse(&entry.name()), entry);
        }
        for name in ["", "maps-", "maps-7", "xdp-native-", "xdp-native-+1", "tcx-01", "tcx--1", "tcx-4294967296", "x"] {
            assert_eq!(Entry::parse(name), Entry::Unknown, "{name:?}");
        }
    }

    #[test]
    fn nothing_found_is_nothing_to_do() {
        assert_eq!(plan(OWN, &[]), Plan::default());
    }

    #[test]
    fn the_same_layout_is_adopted_with_its_links() {
        let found = [
            maps(OWN, true),
            link(NATIVE_HOOK, 12, Some((LinkKind::Xdp, 12))),
            link(Hook::Tcx, 13, Some((LinkKind::Tcx, 13))),
            other("filter-14"),
            other("qdisc-14"),
            other("gro-13"),
        ];
        let expected = Plan {
            adopts_maps: true,
            links: vec![(NATIVE_HOOK, 12), (Hook::Tcx, 13)],
            filters: vec![14],
            gro: vec![13],
            ..Plan::default()
        };
        assert_eq!(plan(OWN, &found), expected);
    }

    #[test]
    fn another_layout_is_replaced_under_its_links() {
        let found = [maps(OTHER, true), link(NATIVE_HOOK, 12, Some((LinkKind::Xdp, 12)))];
        let expected =
            Plan { links: vec![(NATIVE_HOOK, 12)], outdated: vec![Entry::Maps(OTHER).name()], ..Plan::default() };
        assert_eq!(plan(OWN, &found), expected);
    }

    #[test]
    fn a_replacement_that_was_interrupted_goes_on() {
        // Both layouts are there: the links may run either's programs.
        let found = [maps(OWN, true), maps(OTHER, true), link(Hook::Tcx, 1, Some((LinkKind::Tcx, 1)))];
        for (own, outdated) in [(OWN, OTHER), (OTHER, OWN)] {
            let plan = plan(own, &found);
            assert!(plan.adopts_maps);
            assert_eq!((plan.links.len(), plan.outdated), (1, vec![Entry::Maps(outdated).name()]));
        }
    }

    #[test]
    fn what_is_half_or_attached_to_nothing_is_rubbish() {
        let rubbish = [
            maps(OWN, false),
            maps(OTHER, false),
            other("unfinished-000000000000000a"),
            other("podlane"),
            other("gro-12"),
            // The interface is gone; the pin is of another kind or interface than its name says; the kernel does not know it.
            link(NATIVE_HOOK, 12, Some((LinkKind::Xdp, 0))),
            link(Hook::Tcx, 12, Some((LinkKind::Xdp, 12))),
            link(Hook::Tcx, 13, Some((LinkKind::Tcx, 12))),
            link(Hook::Tcx, 14, None),
        ];
        let plan = plan(OWN, &rubbish);
        assert_eq!(plan.rubbish.len(), rubbish.len());
        assert_eq!(Plan { rubbish: Vec::new(), ..plan }, Plan::default());
    }
}
