//! The boot state that a guest reported, and how long it is valid.

use serde::{Deserialize, Serialize};

use vsock_agent_protocol::guest_api::GuestState;

/// The state that a guest reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// The state. `Ready` ends when the connection to the agent is lost, and is valid again when the
    /// agent is reached in the same boot of the guest.
    pub state: GuestState,
    /// Time of the report, in seconds since 1970. `None` if there was none.
    pub said_at: Option<u64>,
}

/// The last report of a guest, and whether its agent can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    reported: GuestReport,
    /// The boot in which it reported that it is ready; `None` if its agent was not reached in it.
    pub(super) ready_in: Option<String>,
    presence: Presence,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Presence {
    /// The agent was not reached yet.
    #[default]
    Unknown,
    /// Reached in this boot.
    Connected(String),
    Lost,
}

impl Progress {
    /// Continues with what an earlier process stored.
    pub(super) fn new(reported: GuestReport, ready_in: Option<String>) -> Self {
        Self {
            reported,
            ready_in,
            presence: Presence::Unknown,
        }
    }

    /// The current state.
    pub(super) fn report(&self) -> GuestReport {
        let mut report = self.reported;
        if self.presence == Presence::Lost && self.ready_in.is_some() {
            report.state = GuestState::Started;
        }
        report
    }

    pub(super) fn set_report(&mut self, report: GuestReport) {
        self.reported = report;
        self.ready_in = match (&self.presence, report.state) {
            (Presence::Connected(boot), GuestState::Ready) => Some(boot.clone()),
            _ => None,
        };
    }

    pub(super) fn agent_connected(&mut self, boot: String) {
        if self.reported.state == GuestState::Ready {
            match &self.ready_in {
                Some(before) if *before != boot => {
                    self.reported = GuestReport::default();
                    self.ready_in = None;
                }
                _ => self.ready_in = Some(boot.clone()),
            }
        }
        self.presence = Presence::Connected(boot);
    }

    pub(super) fn agent_lost(&mut self) {
        self.presence = Presence::Lost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: GuestReport = GuestReport {
        state: GuestState::Ready,
        said_at: Some(7),
    };

    fn is_ready(progress: &Progress) -> bool {
        progress.report().state == GuestState::Ready
    }

    #[test]
    fn ready_ends_with_the_boot_and_not_with_the_agent_process() {
        let mut progress = Progress::default();
        progress.agent_connected("a".to_owned());
        progress.set_report(READY);
        assert_eq!(progress.report(), READY);
        progress.agent_lost();
        assert!(!is_ready(&progress));
        progress.agent_connected("a".to_owned());
        assert_eq!(progress.report(), READY);
        progress.agent_lost();
        progress.agent_connected("b".to_owned());
        assert_eq!(progress.report(), GuestReport::default());
    }

    #[test]
    fn a_report_before_the_agent_is_reached_is_valid() {
        let mut progress = Progress::default();
        progress.set_report(READY);
        assert!(is_ready(&progress));
        progress.agent_connected("a".to_owned());
        assert!(is_ready(&progress));
        progress.agent_lost();
        // The guest reports again before its agent is reached again.
        progress.set_report(READY);
        assert!(is_ready(&progress));
        progress.agent_connected("b".to_owned());
        assert!(is_ready(&progress));
    }

    #[test]
    fn a_stored_report_is_valid_only_in_the_same_boot() {
        for (boot, is_valid) in [("a", true), ("b", false)] {
            let mut progress = Progress::new(READY, Some("a".to_owned()));
            progress.agent_connected(boot.to_owned());
            assert_eq!(is_ready(&progress), is_valid);
        }
    }
}
