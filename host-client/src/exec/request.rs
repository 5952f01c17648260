//! From a builder to the request an agent understands.

use std::{collections::BTreeMap, ffi::OsStr, os::unix::ffi::OsStrExt, time::Duration};

use super::{Account, Exec};
use crate::{
    error::ClientError,
    protocol::{
        exec::{ExecRequest, OnDisconnect},
        id,
        printable::{LOG_CHARS, excerpt},
        server_info::ServerInfo,
        version,
    },
};

impl Exec {
    /// The request, in words this agent knows.
    ///
    /// An agent that takes names is given numbers as names too: it then looks the user up, and the
    /// command gets that user's own groups.
    pub(super) fn request(&self, info: &ServerInfo) -> Result<ExecRequest, ClientError> {
        let takes_names = info.has(version::EXEC_USER_NAME);
        let (user, user_name) = account(self.user.as_ref(), takes_names)?;
        let (group, group_name) = account(self.group.as_ref(), takes_names)?;
        let timeout = self.timeout.filter(|time| !time.is_zero());
        if timeout.is_some() && !info.has(version::EXEC_OPTIONS) {
            return Err(ClientError::unsupported("limit the time of a command"));
        }
        let takes_times = info.has(version::EXEC_TIMES);
        if self.kill_pause.is_some() && !takes_times {
            return Err(ClientError::unsupported(
                "set the time between the signals that end a command",
            ));
        }
        if self.on_disconnect != OnDisconnect::End && !info.has(version::EXEC_ON_DISCONNECT) {
            return Err(ClientError::unsupported(
                "keep a command without its client",
            ));
        }
        let mut request = ExecRequest::new(self.words()?);
        request.wait_for_websocket = true;
        if let Some(size) = self.terminal {
            request.interactive = true;
            (request.width, request.height) = (size.columns.into(), size.lines.into());
        }
        request.environment = self.variables()?;
        (request.user, request.user_name) = (user, user_name);
        (request.group, request.group_name) = (group, group_name);
        request.cwd = text(&self.directory, || "the directory".to_owned())?;
        if let Some(timeout) = timeout {
            request.set_time_limit(if takes_times {
                timeout
            } else {
                // Rounded up: a limit of half a second is not none.
                Duration::from_secs(
                    timeout
                        .as_secs()
                        .saturating_add((timeout.subsec_nanos() > 0).into()),
                )
            });
        }
        if let Some(pause) = self.kill_pause {
            request.set_kill_pause(pause);
        }
        request.wait_for_eof = self.wait_for_eof;
        request.on_disconnect = self.on_disconnect;
        Ok(request)
    }

    /// The program and its arguments.
    fn words(&self) -> Result<Vec<String>, ClientError> {
        let name = |number| match number {
            0 => "the program".to_owned(),
            number => format!("argument {number}"),
        };
        let words = self.command.iter().enumerate();
        words
            .map(|(number, word)| text(word, || name(number)))
            .collect()
    }

    fn variables(&self) -> Result<BTreeMap<String, String>, ClientError> {
        let variables = self.environment.iter();
        variables
            .map(|(name, value)| {
                let name = text(name, || "the variable".to_owned())?;
                let value = text(value, || format!("the value of {name}"))?;
                Ok((name, value))
            })
            .collect()
    }
}

/// The text of `word` for a request, which is JSON. `what` names it in the error.
fn text(word: &OsStr, what: impl FnOnce() -> String) -> Result<String, ClientError> {
    word.to_str().map(str::to_owned).ok_or_else(|| {
        let shown = excerpt(word.as_bytes(), LOG_CHARS);
        let reason = format!("{} is not UTF-8: {shown}", what());
        ClientError::invalid_argument("start the command", reason)
    })
}

fn account(
    account: Option<&Account>,
    takes_names: bool,
) -> Result<(u32, Option<String>), ClientError> {
    match (account, takes_names) {
        (Some(Account::Id(id::UNCHANGED)), _) => Err(ClientError::unsupported(
            "run a command as user or group 4294967295, which is not a valid id",
        )),
        (None, _) => Ok((0, None)),
        (Some(Account::Id(id)), true) => Ok((*id, Some(id.to_string()))),
        (Some(Account::Id(id)), false) => Ok((*id, None)),
        (Some(Account::Name(name)), true) => Ok((0, Some(name.clone()))),
        (Some(Account::Name(_)), false) => Err(ClientError::unsupported(
            "look up a user or group by name: give its number",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Client, Endpoint, Security};

    fn exec() -> Exec {
        let endpoint = Endpoint::Unix("/nowhere".into());
        Client::new(endpoint, Security::Plain).exec("id", ["-u"])
    }

    fn agent_with(extension: &str) -> ServerInfo {
        let mut info = ServerInfo::default();
        info.api_extensions.push(extension.to_owned());
        info
    }

    /// The time limit on the wire, in seconds and in milliseconds.
    fn time_limit(request: &ExecRequest) -> (Option<u64>, Option<u64>) {
        let wire = serde_json::to_value(request).unwrap();
        (wire["timeout"].as_u64(), wire["timeout_ms"].as_u64())
    }

    fn our_agent() -> ServerInfo {
        agent_with(version::EXEC_USER_NAME)
    }

    #[test]
    fn a_name_is_sent_to_an_agent_that_looks_it_up() {
        let request = exec().user("www").group("7").request(&our_agent()).unwrap();
        assert_eq!(request.user_name.as_deref(), Some("www"));
        assert_eq!(
            (request.group, request.group_name.as_deref()),
            (7, Some("7"))
        );
    }

    #[test]
    fn an_agent_that_would_end_the_command_is_not_asked_to_keep_it() {
        let mut info = our_agent();
        let keep = || exec().on_disconnect(OnDisconnect::Keep);
        let error = keep().request(&info).unwrap_err();
        assert!(matches!(error, ClientError::Unsupported { .. }));
        info.api_extensions
            .push(version::EXEC_ON_DISCONNECT.to_owned());
        let request = keep().request(&info).unwrap();
        assert_eq!(request.on_disconnect, OnDisconnect::Keep);
    }

    #[test]
    fn the_number_that_means_no_change_is_sent_to_no_agent() {
        for info in [ServerInfo::default(), our_agent()] {
            for exec in [exec().user(u32::MAX), exec().group("4294967295")] {
                let error = exec.request(&info).unwrap_err();
                assert!(matches!(error, ClientError::Unsupported { .. }));
            }
        }
    }

    #[test]
    fn what_is_not_utf_8_is_refused_by_its_name() {
        let bad = || OsStr::from_bytes(b"a\xff");
        let client = Client::new(Endpoint::Unix("/nowhere".into()), Security::Plain);
        for (exec, name) in [
            (
                client.exec(bad(), [""; 0]),
                "the program is not UTF-8: a\\xff",
            ),
            (
                exec().arg("x").arg(bad()),
                "argument 3 is not UTF-8: a\\xff",
            ),
            (exec().env(bad(), "x"), "the variable is not UTF-8: a\\xff"),
            (
                exec().envs([("A", bad())]),
                "the value of A is not UTF-8: a\\xff",
            ),
            (exec().cwd(bad()), "the directory is not UTF-8: a\\xff"),
        ] {
            let error = exec.request(&our_agent()).unwrap_err();
            let ClientError::Local { source, .. } = &error else {
                panic!("{error:?}")
            };
            assert_eq!(source.kind(), std::io::ErrorKind::InvalidInput);
            assert_eq!(source.to_string(), name);
            assert!(!error.may_have_run());
        }
    }

    #[test]
    fn no_time_at_all_is_no_limit_and_any_agent_keeps_it() {
        let request = exec()
            .timeout(Duration::ZERO)
            .request(&ServerInfo::default());
        assert_eq!(time_limit(&request.unwrap()), (None, None));
    }

    #[test]
    fn times_are_sent_as_exactly_as_the_agent_takes_them() {
        let exec = exec().timeout(Duration::from_micros(1_250_100));
        let mut info = agent_with(version::EXEC_OPTIONS);
        let request = exec.request(&info).unwrap();
        assert_eq!(time_limit(&request), (Some(2), None));
        let exec = exec.kill_pause(Duration::from_millis(30));
        exec.request(&info).unwrap_err();
        info.api_extensions.push(version::EXEC_TIMES.to_owned());
        let request = exec.request(&info).unwrap();
        assert_eq!(time_limit(&request), (Some(2), Some(1251)));
        assert_eq!(request.kill_pause(), Some(Duration::from_millis(30)));
        let request = exec.timeout(Duration::from_secs(3)).request(&info).unwrap();
        assert_eq!(time_limit(&request), (Some(3), None));
    }

    #[test]
    fn a_stock_agent_gets_numbers_and_never_a_name() {
        let info = ServerInfo::default();
        let request = exec().user("33").group(44).request(&info).unwrap();
        assert_eq!((request.user, request.user_name), (33, None));
        assert_eq!((request.group, request.group_name), (44, None));
        let error = exec().user("www").request(&info).unwrap_err();
        assert!(matches!(error, ClientError::Unsupported { .. }));
    }
}
