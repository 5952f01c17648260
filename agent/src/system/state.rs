//! The guest itself: processors, memory, disks, file systems, network, processes.
//!
//! Called by `api/state.rs` and `api/metrics.rs`. Everything is read in `sources.rs` and
//! `filesystems.rs`, parsed by pure functions, and written in three shapes:
//!
//! ```text
//! /proc /sys /etc ─► sources ─► Snapshot ─┬─► instance   GET /1.0/state
//! statvfs ─────────► filesystems ─────────┼─► numbers    GET /1.0/metrics
//!                                         └─► text       GET /metrics
//! ```
//!
//! A value that cannot be read is left out or 0. Nothing is stored between two requests but the file
//! systems that hang.

mod cpu;
mod disks;
mod filesystems;
mod instance;
mod memory;
mod mounts;
mod network;
mod numbers;
mod page;
mod processes;
mod sources;
mod system;
mod text;

use std::io;

use vsock_agent_protocol::{metrics::IncusMetrics, state::InstanceState, version::Family};

use filesystems::Prober;
use sources::Sources;

use crate::system::blocking::run_blocking;

pub(crate) use text::{AgentNumbers, CONTENT_TYPE, CannotWrite};

/// Reads the state of the guest. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guest {
    sources: Sources,
    prober: Prober,
}

/// The state cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// No thread can be started, or reading failed.
    #[error("cannot look at this machine")]
    Read(#[from] io::Error),
    /// The page could not be written.
    #[error("cannot write the numbers of this machine")]
    Write(#[from] CannotWrite),
}

impl Guest {
    /// The state in the format of this host flavour.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`].
    pub(crate) async fn state(&self, family: Family) -> Result<InstanceState, StateError> {
        let sources = self.sources.clone();
        let snapshot = run_blocking(move || sources.read()).await?;
        Ok(instance::state(snapshot, family))
    }

    /// The metrics, in Incus's format; for LXD's convert them. `family` determines what counts as a
    /// process.
    ///
    /// # Errors
    ///
    /// [`StateError::Read`].
    pub(crate) async fn metrics(&self, family: Family) -> Result<IncusMetrics, StateError> {
        let sources = self.sources.clone();
        let snapshot = run_blocking(move || sources.read()).await?;
        let filesystems = self.prober.measure(self.sources.clone()).await?;
        Ok(numbers::metrics(snapshot, filesystems, family))
    }

    /// The metrics of the guest and of the agent in Prometheus's text format.
    ///
    /// # Errors
    ///
    /// [`StateError`].
    pub(crate) async fn text(&self, agent: AgentNumbers) -> Result<String, StateError> {
        let sources = self.sources.clone();
        let snapshot = run_blocking(move || sources.read()).await?;
        let filesystems = self.prober.measure(self.sources.clone()).await?;
        Ok(text::write(&snapshot, &filesystems, &agent)?)
    }
}
