//! Whether two versions of Podlane mean the same by the bytes in the maps.

use std::fmt;

/// A number that stands for the maps' shapes, the structures in them and the numbers that those hold. Daemons with the same
/// one can use each other's maps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Layout(pub u64);

/// All that the layout consists of: maps and structures, their sizes, and the reasons that are counted by number.
const SOURCES: [&str; 3] = [
    include_str!("../../../../bpf/tables.h"),
    include_str!("../../../../bpf/limits.h"),
    include_str!("../../../../bpf/reason.h"),
];

impl Layout {
    /// Of this version.
    pub fn own() -> Self {
        Layout::of(&SOURCES)
    }

    fn of(sources: &[&str]) -> Self {
        // FNV-1a: known by heart, the same everywhere and for ever, and nobody chooses the input.
        let start = 0xcbf2_9ce4_8422_2325;
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Layout(sources.iter().flat_map(|source| meaning(source).into_bytes()).fold(start, step))
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// A C source without comments and with one space for each run of white space.
fn meaning(source: &str) -> String {
    let mut rest = source;
    let mut code = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        code.push(' ');
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    code.push_str(rest);
    code.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_do_not_matter_and_fields_do() {
        let layout = |source: &str| Layout::of(&[source]);
        let plain = layout("struct near {\n\t__u32 ifindex;\n};");
        assert_eq!(layout("/* A port.\n * */ struct near { __u32 ifindex; /* 0: nobody's */ };"), plain);
        assert_ne!(layout("struct near { __u64 ifindex; };"), plain);
        assert_ne!(layout("struct near { __u32 port; };"), plain);
    }

    #[test]
    fn every_source_counts() {
        for left_out in 0..SOURCES.len() {
            let others: Vec<&str> =
                SOURCES.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, source)| *source).collect();
            assert_ne!(Layout::of(&others), Layout::own());
        }
    }
}
