//! The TOML file. It is read key by key instead of through derived types, because then every mistake of the file is found
//! in one go, each with its line, and a misspelt key can be answered with the one that was meant.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{Given, Origin, Problem, Settings};

/// Bytes of the largest file that is read. A real one has some hundred.
pub const MAX_FILE: u64 = 1 << 20;

/// Every key of the file, in the order of the sample.
pub const KEYS: [&str; 24] = [
    "instance",
    "path",
    "port_paths",
    "source_guard",
    "port_guards",
    "bypass_netfilter",
    "bridge",
    "uplinks",
    "cluster_cidrs",
    "workers",
    "cpus",
    "frames",
    "xdp_mode",
    "zero_copy",
    "checksum_metadata",
    "idle_spin_us",
    "big_tcp",
    "local_mtu",
    "metrics_address",
    "cni_cache",
    "bpffs",
    "skip",
    "log",
    "log_format",
];

/// The text of the file at `path`.
pub fn load(path: &Path) -> Result<String, Problem> {
    let unreadable = |error| Problem::at(Origin::File, format_args!("cannot read {}: {error}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Problem::at(
            Origin::File,
            format_args!("{} is no configuration: it is larger than 1 MiB", path.display()),
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Problem::at(Origin::Line(line, ""), "this is not text in UTF-8")
    })
}

/// Whether reading the file once more cannot keep the reader waiting: a pipe was read once, and then is empty or stuck.
pub fn can_be_read_again(path: &Path) -> Result<(), Problem> {
    let unreadable = |error| Problem::at(Origin::File, format_args!("cannot read {}: {error}", path.display()));
    match path.metadata().map_err(unreadable)?.file_type() {
        kind if kind.is_file() || path == Path::new("/dev/null") => Ok(()),
        _ => Err(Problem::at(
            Origin::File,
            format_args!("{} is no file that can be read again; restart podlane with one that is", path.display()),
        )),
    }
}

/// Reads the text of a file. What cannot be read is left out of the settings and named among the problems.
pub fn read(text: &str) -> (Settings, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problems = errors.iter().map(|error| {
            let line = line_of(text, error.span().map_or(text.len(), |span| span.start));
            let message = error.message().replace('\n', ", ");
            Problem::at(Origin::Line(line, ""), format_args!("this is not TOML: {message}"))
        });
        return (Settings::default(), problems.collect());
    }
    let mut reader = Reader { text, problems: Vec::new() };
    let mut settings = Settings::default();
    for (key, value) in table.get_ref() {
        let line = line_of(text, key.span().start);
        match KEYS.iter().find(|&&known| known == key.get_ref().as_ref()) {
            Some(known) => reader.set(&mut settings, Origin::Line(line, known), value),
            None => {
                let sentence = unknown_key(key.get_ref(), value.get_ref());
                reader.problems.push(Problem::at(Origin::Line(line, ""), sentence));
            }
        }
    }
    (settings, reader.problems)
}

/// The line, from 1, of a byte of the text.
fn line_of(text: &str, position: usize) -> usize {
    1 + text.as_bytes().iter().take(position).filter(|&&byte| byte == b'\n').count()
}

fn unknown_key(key: &str, value: &DeValue<'_>) -> String {
    let normal = key.to_lowercase().replace('-', "_");
    match nearest(&normal, &KEYS) {
        Some(meant) => format!("there is no key {key:?}; did you mean `{meant}`?"),
        None if matches!(value, DeValue::Table(_)) => {
            format!("there is no section [{key}]: this file has no sections; the keys are {}", KEYS.join(", "))
        }
        None => format!("there is no key {key:?}; the keys are {}", KEYS.join(", ")),
    }
}

/// The one of `known` that a person probably meant, if any is near.
pub fn nearest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    let score = |known: &str| strsim::jaro_winkler(written, known);
    let best = known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(best) > 0.82).then_some(best)
}

struct Reader<'t> {
    text: &'t str,
    problems: Vec<Problem>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl Reader<'_> {
    fn set(&mut self, settings: &mut Settings, origin: Origin, value: &Value<'_>) {
        let Origin::Line(_, key) = origin else { return };
        match key {
            "instance" => settings.instance = self.string(origin, value),
            "path" => settings.path = self.string(origin, value),
            "port_paths" => settings.port_paths = self.strings(origin, value),
            "bridge" => settings.bridge = self.string(origin, value),
            "uplinks" => settings.uplinks = self.strings(origin, value),
            "cluster_cidrs" => settings.cluster_cidrs = self.strings(origin, value),
            "workers" => settings.workers = self.integer(origin, value),
            "cpus" => settings.cpus = self.cpus(origin, value),
            "frames" => settings.frames = self.integer(origin, value),
            "xdp_mode" => settings.xdp_mode = self.string(origin, value),
            "zero_copy" => settings.zero_copy = self.string(origin, value),
            "checksum_metadata" => settings.checksum_metadata = self.string(origin, value),
            "idle_spin_us" => settings.idle_spin_us = self.integer(origin, value),
            "big_tcp" => settings.big_tcp = self.integer(origin, value),
            "local_mtu" => settings.local_mtu = self.integer(origin, value),
            "metrics_address" => settings.metrics_address = self.string(origin, value),
            "cni_cache" => settings.cni_cache = self.string(origin, value),
            "bpffs" => settings.bpffs = self.string(origin, value),
            "skip" => settings.skip = self.strings(origin, value),
            "source_guard" => settings.source_guard = self.string(origin, value),
            "port_guards" => settings.port_guards = self.strings(origin, value),
            "bypass_netfilter" => settings.bypass_netfilter = self.boolean(origin, value),
            "log" => settings.log = self.string(origin, value),
            "log_format" => settings.log_format = self.string(origin, value),
            _ => {}
        }
    }

    fn wrong_type(&mut self, origin: Origin, wanted: &str, found: &Value<'_>) {
        let found = match found.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with a decimal point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a section",
        };
        self.problems.push(Problem::at(origin, format_args!("{wanted} is wanted here, not {found}")));
    }

    fn string(&mut self, origin: Origin, value: &Value<'_>) -> Option<Given<String>> {
        match value.get_ref() {
            DeValue::String(text) => Some(Given { value: text.to_string(), origin }),
            _ => {
                self.wrong_type(origin, "text in quotes", value);
                None
            }
        }
    }

    fn boolean(&mut self, origin: Origin, value: &Value<'_>) -> Option<Given<bool>> {
        match value.get_ref() {
            DeValue::Boolean(value) => Some(Given { value: *value, origin }),
            _ => {
                self.wrong_type(origin, "true or false, without quotes,", value);
                None
            }
        }
    }

    fn integer(&mut self, origin: Origin, value: &Value<'_>) -> Option<Given<i64>> {
        let DeValue::Integer(number) = value.get_ref() else {
            self.wrong_type(origin, "a whole number without quotes", value);
            return None;
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(value) => Some(Given { value, origin }),
            Err(_) => {
                self.problems.push(Problem::at(origin, format_args!("{} is far too large", number.as_str())));
                None
            }
        }
    }

    fn strings(&mut self, origin: Origin, value: &Value<'_>) -> Option<Vec<Given<String>>> {
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong_type(origin, "a list in brackets, such as [\"a\", \"b\"],", value);
            return None;
        };
        Some(items.iter().filter_map(|item| self.string(self.inside(origin, item), item)).collect())
    }

    /// A list in the usual format as text, or an array of numbers, which becomes that text.
    fn cpus(&mut self, origin: Origin, value: &Value<'_>) -> Option<Given<String>> {
        match value.get_ref() {
            DeValue::String(text) => Some(Given { value: text.to_string(), origin }),
            DeValue::Integer(_) => {
                let number = self.integer(origin, value)?;
                Some(Given { value: number.value.to_string(), origin })
            }
            DeValue::Array(items) => {
                let numbers: Vec<_> =
                    items.iter().filter_map(|item| self.integer(self.inside(origin, item), item)).collect();
                let complete = numbers.len() == items.len();
                let list: Vec<_> = numbers.iter().map(|number| number.value.to_string()).collect();
                complete.then(|| Given { value: list.join(","), origin })
            }
            _ => {
                self.wrong_type(origin, "a list such as \"0,2-3\" or [0, 2, 3]", value);
                None
            }
        }
    }

    /// The place of an item of a list.
    fn inside(&self, list: Origin, item: &Value<'_>) -> Origin {
        match list {
            Origin::Line(_, key) => Origin::Line(line_of(self.text, item.span().start), key),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<(usize, String)> {
        let line = |problem: Problem| match problem.origin {
            Some(Origin::Line(line, "")) => (line, problem.sentence),
            Some(Origin::Line(line, key)) => (line, format!("{key}: {}", problem.sentence)),
            other => panic!("{other:?}"),
        };
        let mut found: Vec<_> = read(text).1.into_iter().map(line).collect();
        found.sort();
        found
    }

    #[test]
    fn every_key_is_read() {
        let text = r#"
            instance = "i"
            path = "p"
            port_paths = ["a=kernel"]
            bridge = "b"
            uplinks = ["u", "v"]
            cluster_cidrs = []
            workers = 2
            cpus = "0-1"
            frames = 0x1000
            xdp_mode = "m"
            checksum_metadata = "c"
            zero_copy = "z"
            idle_spin_us = 1_000
            big_tcp = 196_608
            local_mtu = 65_000
            metrics_address = "a"
            cni_cache = "d"
            skip = ["s"]
            log = "l"
            log_format = "f"
            bpffs = "b"
            source_guard = "g"
            port_guards = ["a=off"]
            bypass_netfilter = true
        "#;
        let (settings, problems) = read(text);
        assert_eq!(problems, []);
        let text = |line, key, value: &str| Given { value: value.to_owned(), origin: Origin::Line(line, key) };
        let number = |line, key, value| Some(Given { value, origin: Origin::Line(line, key) });
        let expected = Settings {
            instance: Some(text(2, "instance", "i")),
            path: Some(text(3, "path", "p")),
            port_paths: Some(vec![text(4, "port_paths", "a=kernel")]),
            bridge: Some(text(5, "bridge", "b")),
            uplinks: Some(vec![text(6, "uplinks", "u"), text(6, "uplinks", "v")]),
            cluster_cidrs: Some(vec![]),
            workers: number(8, "workers", 2),
            cpus: Some(text(9, "cpus", "0-1")),
            frames: number(10, "frames", 4096),
            xdp_mode: Some(text(11, "xdp_mode", "m")),
            checksum_metadata: Some(text(12, "checksum_metadata", "c")),
            zero_copy: Some(text(13, "zero_copy", "z")),
            idle_spin_us: number(14, "idle_spin_us", 1000),
            big_tcp: number(15, "big_tcp", 196_608),
            local_mtu: number(16, "local_mtu", 65_000),
            metrics_address: Some(text(17, "metrics_address", "a")),
            cni_cache: Some(text(18, "cni_cache", "d")),
            skip: Some(vec![text(19, "skip", "s")]),
            log: Some(text(20, "log", "l")),
            log_format: Some(text(21, "log_format", "f")),
            bpffs: Some(text(22, "bpffs", "b")),
            source_guard: Some(text(23, "source_guard", "g")),
            port_guards: Some(vec![text(24, "port_guards", "a=off")]),
            bypass_netfilter: Some(Given { value: true, origin: Origin::Line(25, "bypass_netfilter") }),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn cpus_may_be_a_list_of_numbers() {
        let value = |text: &str| read(text).0.cpus.map(|given| given.value);
        assert_eq!(value("cpus = [0, 2, 3]").as_deref(), Some("0,2,3"));
        assert_eq!(value("cpus = 1").as_deref(), Some("1"));
        assert_eq!(problems("cpus = [0,\n \"a\"]")[0].0, 2);
        assert_eq!(
            problems("cpus = true")[0].1,
            "cpus: a list such as \"0,2-3\" or [0, 2, 3] is wanted here, not true or false"
        );
    }

    #[test]
    fn misspelt_keys_are_answered_with_the_right_one() {
        for (wrong, right) in [
            ("uplink", "uplinks"),
            ("brigde", "bridge"),
            ("cluster-cidrs", "cluster_cidrs"),
            ("cluster_cidr", "cluster_cidrs"),
            ("Workers", "workers"),
            ("idle_spin", "idle_spin_us"),
            ("cpu", "cpus"),
        ] {
            let expected = format!("there is no key {wrong:?}; did you mean `{right}`?");
            assert_eq!(problems(&format!("{wrong} = 1")), [(1, expected)]);
        }
        assert!(problems("zebra = 1")[0].1.contains("the keys are instance, path, port_paths, source_guard"));
        assert!(problems("[server]\nbridge = \"b\"")[0].1.contains("no section [server]"));
    }

    #[test]
    fn all_mistakes_are_found_at_once_with_their_lines() {
        let text = "bridge = 5\n\nuplinks = \"eth0\"\nworkers = \"2\"\nframes = 1.5\nskip = [\n  \"a\",\n  \
         7,\n]\ncolour = 1\n";
        let found = problems(text);
        let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 3, 4, 5, 8, 10]);
        assert_eq!(found[0].1, "bridge: text in quotes is wanted here, not a number");
        assert_eq!(found[2].1, "workers: a whole number without quotes is wanted here, not text");
    }

    #[test]
    fn broken_toml_is_named_with_its_line() {
        let found = problems("bridge = \"cbr0\"\nuplinks = [\"eth0\"\nworkers = 1\n");
        assert!(found[0].0 >= 2 && found[0].1.starts_with("this is not TOML: "), "{found:?}");
        assert!(problems("bridge = \"a\"\nbridge = \"b\"\n")[0].1.contains("duplicate"), "a key given twice");
    }

    #[test]
    fn numbers_beyond_64_bits_are_refused() {
        assert_eq!(
            problems("frames = 99999999999999999999"),
            [(1, "frames: 99999999999999999999 is far too large".into())]
        );
    }
}
