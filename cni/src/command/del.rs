//! DEL and GC: disconnect a container, or all that are not on a list.
//!
//! Neither needs the container's namespace: removing the node's end of a veth pair removes the other one wherever it is, and
//! its name follows from the attachment. Both go as far as they can, whatever is missing already.

use std::collections::BTreeSet;

use crate::delegate;
use crate::ipam::Store;
use crate::link::Links;
use crate::protocol::{Call, Command, Config, Failure, Version, code};

/// Disconnects the container of a call.
///
/// # Errors
/// If something is there and cannot be removed.
pub fn del(call: &Call, config: &Config) -> Result<(), Failure> {
    let store = Store::open(&config.data)?;
    let mut links = Links::open()?;
    let attachment = super::attachment_of(call, config);
    links.delete(&super::host_interface(&attachment))?;
    // Before the entry goes: if the plugin fails, DEL or GC will come here again.
    if let Some(plugin) = &config.delegate {
        delegate::run(plugin, Command::Del, call, config)?;
    }
    super::remove_entry(&mut links, &store, &attachment)
}

/// Disconnects the containers of the network that are not on the configuration's list.
///
/// # Errors
/// Code 7: there is no list; 105: not everything could be removed, and what.
pub fn gc(call: &Call, config: &Config) -> Result<(), Failure> {
    if config.version < Version::V1_1_0 {
        return Err(super::no_such_command("GC", config.version));
    }
    let valid = config.valid_attachments()?;
    let valid: BTreeSet<(&str, &str)> =
        valid.iter().map(|attachment| (attachment.container.as_str(), attachment.interface.as_str())).collect();
    let store = Store::open(&config.data)?;
    let mut links = Links::open()?;
    let mut complaints = Vec::new();
    for entry in store.of_network(&config.name)? {
        let attachment = &entry.attachment;
        if valid.contains(&(attachment.container.as_str(), attachment.interface.as_str())) {
            continue;
        }
        let gone = links.delete(&super::host_interface(attachment)).map_err(Failure::from);
        let gone = gone.and_then(|_| super::remove_entry(&mut links, &store, attachment));
        complaints
            .extend(gone.err().map(|failure| format!("{} {}: {failure}", attachment.container, attachment.interface)));
    }
    if let Some(plugin) = &config.delegate {
        complaints.extend(delegate::run(plugin, Command::Gc, call, config).err().map(|failure| failure.to_string()));
    }
    if complaints.is_empty() {
        return Ok(());
    }
    let message = format!("{} attachments could not be removed, or not wholly", complaints.len());
    Err(Failure::new(code::LEFT_OVER, message).with_details(complaints.join("; ")))
}
