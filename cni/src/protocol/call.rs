//! The call: what the runtime says in environment variables.

use std::path::PathBuf;

use super::failure::{Failure, code};

/// Bytes of the longest container ID. The specification has no limit; the longest in use have 64.
const MOST_ID_BYTES: usize = 1024;
/// Bytes of the longest value that is looked at.
const MOST_BYTES: usize = 64 << 10;
/// Bytes of the longest name of a pod or namespace (a DNS subdomain).
const MOST_NAME_BYTES: usize = 253;
/// Bytes of the longest alias that an interface can have (`IFALIASZ`, with the 0 behind it).
const MOST_ALIAS_BYTES: usize = 255;
/// Bytes of an interface's name and the 0 behind it (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect a container.
    Add,
    /// Disconnect it.
    Del,
    /// Is everything as ADD left it?
    Check,
    /// Remove what belongs to no container of a list.
    Gc,
    /// Could a container be connected now?
    Status,
    /// Which versions are spoken?
    Version,
}

impl Command {
    /// All of them.
    pub const ALL: [Command; 6] =
        [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];

    /// The word in `CNI_COMMAND`.
    pub const fn word(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }
}

/// The environment of a call. What a command does not need is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`: the path of the container's network namespace; empty if it is gone.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub arguments: Vec<(String, String)>,
    /// `CNI_PATH`: where other plugins are.
    pub path: Vec<PathBuf>,
}

impl Call {
    /// Reads the environment through `variable`.
    ///
    /// # Errors
    /// Code 4, naming every variable that is missing or wrong.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<(Command, Self), Failure> {
        let text = |name: &str| variable(name).unwrap_or_default();
        let word = text("CNI_COMMAND");
        let Some(command) = Command::ALL.into_iter().find(|command| command.word() == word) else {
            let message = if word.is_empty() {
                "CNI_COMMAND is not set: this is a CNI plugin, which a container runtime calls".to_owned()
            } else {
                format!("CNI_COMMAND is {word:?}; there are ADD, DEL, CHECK, GC, STATUS and VERSION")
            };
            return Err(Failure::new(code::ENVIRONMENT, message));
        };
        let arguments = text("CNI_ARGS");
        let call = Call {
            container: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            interface: text("CNI_IFNAME"),
            arguments: read_arguments(&arguments).unwrap_or_default(),
            path: text("CNI_PATH").split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect(),
        };
        let wrong = call.complaints(command, &arguments);
        if wrong.is_empty() { Ok((command, call)) } else { Err(Failure::new(code::ENVIRONMENT, wrong.join("; "))) }
    }

    fn complaints(&self, command: Command, arguments: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        let of_container = matches!(command, Command::Add | Command::Del | Command::Check);
        if !of_container {
            return wrong;
        }
        if !is_container_id(&self.container) {
            let id = &self.container;
            wrong.push(format!(
                "CNI_CONTAINERID is {id:?}: it begins with a letter or digit, followed by such, _ . and -"
            ));
        }
        if !is_interface_name(&self.interface) {
            wrong.push(format!("CNI_IFNAME is {:?}, which cannot be an interface's name", self.interface));
        }
        if self.netns.is_empty() && command != Command::Del {
            wrong.push("CNI_NETNS is not set".to_owned());
        }
        if self.netns.len() > MOST_BYTES || self.netns.contains('\0') {
            wrong.push("CNI_NETNS is no path".to_owned());
        }
        if read_arguments(arguments).is_none() {
            wrong.push(format!("CNI_ARGS is {arguments:?}, and not KEY=VALUE pairs with ; between them"));
        }
        wrong
    }

    /// The value of an argument of `CNI_ARGS`.
    pub fn argument(&self, key: &str) -> Option<&str> {
        self.arguments.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// `namespace/pod`, as Kubernetes' runtimes tell it and as an interface's alias can hold it.
    pub fn pod(&self) -> Option<String> {
        let name = |key| self.argument(key).filter(|name| is_pod_name(name));
        let both = format!("{}/{}", name("K8S_POD_NAMESPACE")?, name("K8S_POD_NAME")?);
        Some(both).filter(|both| both.len() <= MOST_ALIAS_BYTES)
    }
}

fn read_arguments(text: &str) -> Option<Vec<(String, String)>> {
    if text.len() > MOST_BYTES {
        return None;
    }
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    text.split(';').filter(|part| !part.is_empty()).map(pair).collect()
}

/// Whether this can be a container's ID, or a network's name: for both the specification says the same.
pub fn is_container_id(text: &str) -> bool {
    let mut bytes = text.bytes();
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.len() <= MOST_ID_BYTES && bytes.next().is_some_and(|first| first.is_ascii_alphanumeric()) && bytes.all(rest)
}

/// Whether an interface can have this name (`dev_valid_name`, `net/core/dev.c`). The kernel would put a number in the place
/// of "%d".
pub fn is_interface_name(name: &str) -> bool {
    let bad = |byte: u8| matches!(byte, b'/' | b':' | b'%' | 0 | 0x0b) || byte.is_ascii_whitespace();
    (1..NAME_BYTES).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(bad)
}

fn is_pod_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=MOST_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}
