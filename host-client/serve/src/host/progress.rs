//! How far a guest is: what it said of itself, as long as that is true.

use serde::{Deserialize, Serialize};

use vsock_agent_protocol::guest_api::GuestState;

/// What a guest said of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// How far it is. `Ready` ends when its agent is gone, and holds again if the agent comes back
    /// in the same run of the guest.
    pub state: GuestState,
    /// When it said so, in seconds since 1970, if it ever did.
    pub said_at: Option<u64>,
}

/// What a guest said, and when its agent was there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    said: GuestReport,
    /// The run of the guest in which it said that it is ready; `None` if its agent was not reached
    /// in it.
    pub(super) ready_in: Option<String>,
    presence: Presence,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Presence {
    /// The agent was not reached yet. It may be out of our reach for ever.
    #[default]
    Unknown,
    /// It is here, in this run of the guest.
    Here(String),
    Lost,
}

impl Progress {
    /// Goes on with what was known.
    pub(super) fn new(said: GuestReport, ready_in: Option<String>) -> Self {
        Self {
            said,
            ready_in,
            presence: Presence::Unknown,
        }
    }

    /// What holds now.
    pub(super) fn report(&self) -> GuestReport {
        let is_over = self.presence == Presence::Lost && self.ready_in.is_some();
        if is_over {
            GuestReport {
                state: GuestState::Started,
                ..self.said
            }
        } else {
            self.said
        }
    }

    pub(super) fn says(&mut self, said: GuestReport) {
        self.said = said;
        self.ready_in = match (&self.presence, said.state) {
            (Presence::Here(boot), GuestState::Ready) => Some(boot.clone()),
            _ => None,
        };
    }

    pub(super) fn is_reached(&mut self, boot: String) {
        if self.said.state == GuestState::Ready {
            match &self.ready_in {
                Some(before) if *before != boot => {
                    self.said = GuestReport::default();
                    self.ready_in = None;
                }
                _ => self.ready_in = Some(boot.clone()),
            }
        }
        self.presence = Presence::Here(boot);
    }

    pub(super) fn is_lost(&mut self) {
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
    fn ready_ends_with_the_guest_and_not_with_the_agents_process() {
        let mut progress = Progress::default();
        progress.is_reached("a".to_owned());
        progress.says(READY);
        assert_eq!(progress.report(), READY);
        progress.is_lost();
        assert!(!is_ready(&progress));
        progress.is_reached("a".to_owned());
        assert_eq!(progress.report(), READY);
        progress.is_lost();
        progress.is_reached("b".to_owned());
        assert_eq!(progress.report(), GuestReport::default());
    }

    #[test]
    fn what_was_said_before_the_agent_was_reached_holds() {
        let mut progress = Progress::default();
        progress.says(READY);
        assert!(is_ready(&progress));
        progress.is_reached("a".to_owned());
        assert!(is_ready(&progress));
        progress.is_lost();
        // The guest says it again before its agent is reached again.
        progress.says(READY);
        assert!(is_ready(&progress));
        progress.is_reached("b".to_owned());
        assert!(is_ready(&progress));
    }

    #[test]
    fn an_earlier_process_of_the_hosts_hands_on_what_it_knew() {
        for (boot, holds) in [("a", true), ("b", false)] {
            let mut progress = Progress::new(READY, Some("a".to_owned()));
            progress.is_reached(boot.to_owned());
            assert_eq!(is_ready(&progress), holds);
        }
    }
}
