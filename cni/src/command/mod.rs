//! The commands: what each does, in which order, and what is undone if a step fails.

mod add;
mod check;
mod del;
mod status;

pub use add::{Fault, Step, add};
pub use check::check;
pub use del::{del, gc};
pub use status::status;

use crate::ipam::{Attachment, Store};
use crate::link::Links;
use crate::protocol::{Call, Config, Failure, Version, code};

/// Who is connected to what.
fn attachment_of(call: &Call, config: &Config) -> Attachment {
    Attachment { network: config.name.clone(), container: call.container.clone(), interface: call.interface.clone() }
}

/// The name of an attachment's interface on the node. It follows from the attachment, so that it is found again whatever
/// else is forgotten.
pub fn host_interface(attachment: &Attachment) -> String {
    format!("veth{:011x}", attachment.hash() >> 20)
}

/// Removes what is remembered of an attachment whose interfaces are gone: first who had its addresses, then its
/// reservation. What is gone already is no error.
fn remove_entry(links: &mut Links, store: &Store, attachment: &Attachment) -> Result<(), Failure> {
    let Some(entry) = store.find(attachment)? else { return Ok(()) };
    if let Some(bridge) = links.find(&entry.bridge)? {
        for address in entry.addresses {
            links.forget_neighbour(bridge.index, address)?;
        }
    }
    store.release(attachment).map(drop)
}

fn no_such_command(command: &str, version: Version) -> Failure {
    Failure::new(code::INCOMPATIBLE_VERSION, format!("version {version} of the CNI specification has no {command}"))
}
