//! What was found at the pods' veths, written to a file: a daemon that follows a killed one gives back what was there before
//! both of them, not what the first one put there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::link::Sizes;
use super::{Held, Marked};
use crate::control;

/// What is held, by the veths' host ends; the file's content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Left {
    /// Segmentation sizes.
    pub sizes: BTreeMap<u32, Held<Sizes>>,
    /// Routes of IPv6 that have a smaller MTU because of them.
    #[serde(default)]
    pub jumbo: BTreeMap<u32, Marked>,
    /// MTUs and routes.
    pub mtus: BTreeMap<u32, (Held<u32>, Marked)>,
}

impl Left {
    /// Reads the text of the file.
    pub(crate) fn read(text: &[u8]) -> io::Result<Self> {
        serde_json::from_slice(text).map_err(io::Error::from)
    }
}

/// The file. It lies beside the control socket, on a file system that does not outlive the interfaces.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
}

impl Memory {
    /// Of an instance.
    pub fn of(instance: &str) -> Self {
        Memory { path: control::run_directory().join(format!("{instance}.large.json")) }
    }

    /// What a killed daemon has left; nothing if none was, or if its file cannot be read: its changes are then taken for
    /// what was there before.
    pub fn load(&self) -> Left {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Left::default(),
            text => text,
        };
        let left = text.and_then(|text| Left::read(text.as_bytes()));
        left.unwrap_or_else(|error| {
            tracing::warn!(%error, path = %self.path.display(), "what an earlier daemon found at the pods' veths is lost");
            Left::default()
        })
    }

    /// Writes it as a whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, left: &Left) -> io::Result<()> {
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec(left)?)?;
        fs::rename(new, &self.path)
    }

    /// Nothing is held any more.
    pub fn forget(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "removing a file");
            }
            _ => {}
        }
    }
}
