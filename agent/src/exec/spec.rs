//! Resolves a request into what `fork` and `exec` need.

use std::{
    collections::BTreeMap,
    ffi::{CString, NulError},
    time::Duration,
};

use nix::unistd::{getegid, geteuid, getgroups};
use vsock_agent_protocol::{
    exec::{ExecRequest, OnDisconnect},
    id::{self, UNCHANGED},
};

use super::pty::TermSize;
use crate::by_insertion::by_insertion;
use crate::{
    defaults,
    system::accounts::{Accounts, User},
};

/// `PATH` unless the request sets it: LXD's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Appended to `PATH` where it exists, as LXD does.
const SNAP_BIN: &str = "/snap/bin";

/// Size of a terminal unless the request sets it: LXD's default.
const DEFAULT_SIZE: TermSize = TermSize { rows: 25, cols: 80 };

/// A command, ready to be started.
#[derive(Debug, Clone)]
pub(crate) struct ExecSpec {
    /// Paths to try, in order: one, or the program's name in each directory of `PATH`.
    pub(super) candidates: Vec<CString>,
    pub(super) argv: Vec<CString>,
    pub(super) envp: Vec<CString>,
    pub(super) cwd: Directory,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// Whether it is the user of an agent that is not root.
    pub(super) is_agent_user: bool,
    /// The terminal's size; without one there are three pipes.
    pub(super) terminal: Option<TermSize>,
    /// Its time limit.
    pub(super) timeout: Option<Duration>,
    /// Time between two of the signals that end it.
    pub(super) signal_delay: Duration,
    /// Whether output streams end only when all processes have closed them, as in LXD's agent.
    pub(super) wait_for_eof: bool,
    /// What happens when its client disconnects.
    pub(super) on_disconnect: OnDisconnect,
}

/// The working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Directory {
    /// Given in the request: an error if it does not exist.
    Requested(CString),
    /// The user's home directory: `/` if it does not exist.
    Home(CString),
}

/// An invalid request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    /// No program is given.
    #[error("the command is empty")]
    EmptyCommand,
    /// No such user in `/etc/passwd`.
    #[error("there is no user {0:?}")]
    UnknownUser(String),
    /// No such group in `/etc/group`.
    #[error("there is no group {0:?}")]
    UnknownGroup(String),
    /// The number that system calls use for "unchanged".
    #[error("{UNCHANGED} is the number of no {0}")]
    Unchanged(&'static str),
    /// An agent that is not root runs commands as its own user only.
    #[error("the agent is not root, and cannot become another user or group")]
    NotRoot,
    /// The name of a variable is empty or contains `=`.
    #[error("{0:?} cannot be the name of an environment variable")]
    BadVariable(String),
    /// The kernel ends strings at a NUL byte.
    #[error("a NUL byte in {0}")]
    Nul(&'static str),
}

impl ExecSpec {
    /// Resolves a request. Accesses no file except to check that `/snap/bin` exists. `agent` is the
    /// agent's own user, unless it is root.
    ///
    /// # Errors
    ///
    /// [`SpecError`] for the first invalid field.
    pub(crate) fn resolve(
        request: &ExecRequest,
        accounts: &Accounts,
        agent: Option<&AgentUser>,
    ) -> Result<Self, SpecError> {
        let program = request
            .command
            .first()
            .filter(|program| !program.is_empty());
        let program = program.ok_or(SpecError::EmptyCommand)?;
        let identity = match agent {
            None => Identity::resolve(request, accounts)?,
            Some(agent) => Identity::own(request, accounts, agent)?,
        };
        let snap = std::path::Path::new(SNAP_BIN).is_dir();
        let environment = environment(request, &identity, snap)?;
        let cwd = match (request.cwd.as_str(), environment.get("HOME")) {
            ("", Some(home)) if !home.is_empty() => Directory::Home(c_string(home, "HOME")?),
            ("", _) => Directory::Home(c"/".to_owned()),
            (cwd, _) => Directory::Requested(c_string(cwd, "cwd")?),
        };
        let path = environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        Ok(Self {
            candidates: candidates(program, path)?,
            argv: c_strings(&request.command, "command")?,
            envp: c_strings(
                environment
                    .iter()
                    .map(|(name, value)| format!("{name}={value}")),
                "environment",
            )?,
            cwd,
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups,
            is_agent_user: agent.is_some(),
            terminal: request.interactive.then(|| terminal_size(request)),
            timeout: request.time_limit(),
            signal_delay: request.kill_pause().unwrap_or(defaults::KILL_PAUSE),
            wait_for_eof: request.wait_for_eof,
            on_disconnect: request.on_disconnect,
        })
    }

    /// The command's environment, for the reply to the request.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let pairs = self
            .envp
            .iter()
            .filter_map(|pair| pair.to_str().ok()?.split_once('='));
        by_insertion(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())))
    }

    /// The user it runs as.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether the command gets a terminal.
    pub(crate) fn is_interactive(&self) -> bool {
        self.terminal.is_some()
    }
}

/// The user and groups a command runs as.
struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    user: Option<User>,
}

/// The user of an agent that is not root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentUser {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl AgentUser {
    /// The agent's user, unless it is root.
    pub(crate) fn unless_root() -> Option<Self> {
        let uid = geteuid();
        (!uid.is_root()).then(|| Self {
            uid: uid.as_raw(),
            gid: getegid().as_raw(),
            // Fails only for a list that is too short.
            groups: getgroups()
                .unwrap_or_default()
                .into_iter()
                .map(Into::into)
                .collect(),
        })
    }
}

impl Identity {
    /// The agent's own user, if the request is for that user. Requests without a user have 0.
    fn own(
        request: &ExecRequest,
        accounts: &Accounts,
        agent: &AgentUser,
    ) -> Result<Self, SpecError> {
        let requested = Self::resolve(request, accounts)?;
        let names_no_user = request.user_name.is_none() && request.user == 0;
        let names_no_group = request.group_name.is_none() && request.group == 0;
        let is_user = names_no_user || requested.uid == agent.uid;
        let is_group = names_no_group || requested.gid == agent.gid;
        if !is_user || !is_group {
            return Err(SpecError::NotRoot);
        }
        Ok(Self {
            uid: agent.uid,
            gid: agent.gid,
            groups: agent.groups.clone(),
            user: accounts.user_numbered(agent.uid),
        })
    }

    fn resolve(request: &ExecRequest, accounts: &Accounts) -> Result<Self, SpecError> {
        for (number, what) in [(request.user, "user"), (request.group, "group")] {
            if number == UNCHANGED {
                return Err(SpecError::Unchanged(what));
            }
        }
        let (uid, user) = match &request.user_name {
            None => (request.user, accounts.user_numbered(request.user)),
            Some(name) => find_user(name, accounts)?,
        };
        let gid = match &request.group_name {
            Some(name) => find_group(name, accounts)?,
            // A user name implies its group, as at a login; a bare number does not.
            None if request.user_name.is_some() => {
                user.as_ref().map_or(request.group, |user| user.gid)
            }
            None => request.group,
        };
        let groups = match &user {
            Some(user) => accounts.groups_of(&user.name, gid),
            None => vec![gid],
        };
        Ok(Self {
            uid,
            gid,
            groups,
            user,
        })
    }
}

fn find_user(name: &str, accounts: &Accounts) -> Result<(u32, Option<User>), SpecError> {
    if let Some(user) = accounts.user_named(name) {
        return Ok((user.uid, Some(user)));
    }
    match id::parse(name) {
        Some(uid) => Ok((uid, accounts.user_numbered(uid))),
        None => Err(SpecError::UnknownUser(name.to_owned())),
    }
}

fn find_group(name: &str, accounts: &Accounts) -> Result<u32, SpecError> {
    accounts
        .group_named(name)
        .or_else(|| id::parse(name))
        .ok_or_else(|| SpecError::UnknownGroup(name.to_owned()))
}

/// The command's environment: defaults and the request's. The agent's own is not inherited.
fn environment(
    request: &ExecRequest,
    identity: &Identity,
    snap: bool,
) -> Result<BTreeMap<String, String>, SpecError> {
    let mut environment = BTreeMap::new();
    for (name, value) in &request.environment {
        if name.is_empty() || name.contains('=') {
            return Err(SpecError::BadVariable(name.clone()));
        }
        environment.insert(name.clone(), value.clone());
    }
    let mut default = |name: &str, value: &str| {
        environment
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
    };
    default("PATH", DEFAULT_PATH);
    default("LANG", "C.UTF-8");
    match &identity.user {
        Some(user) => {
            default("HOME", &user.home);
            default("USER", &user.name);
            default("LOGNAME", &user.name);
            let shell = if user.shell.is_empty() {
                "/bin/sh"
            } else {
                &user.shell
            };
            default("SHELL", shell);
        }
        None if identity.uid == 0 => {
            default("HOME", "/root");
            default("USER", "root");
            default("LOGNAME", "root");
        }
        None => default("HOME", "/"),
    }
    if snap
        && let Some(path) = environment.get_mut("PATH")
        && !path.split(':').any(|directory| directory == SNAP_BIN)
    {
        path.push(':');
        path.push_str(SNAP_BIN);
    }
    Ok(environment)
}

/// The paths `execvp(3)` would try.
fn candidates(program: &str, path: &str) -> Result<Vec<CString>, SpecError> {
    if program.contains('/') {
        return Ok(vec![c_string(program, "command")?]);
    }
    let paths = path.split(':').map(|directory| match directory {
        "" => format!("./{program}"),
        directory => format!("{directory}/{program}"),
    });
    c_strings(paths, "command")
}

fn terminal_size(request: &ExecRequest) -> TermSize {
    let cells = |number: i64| u16::try_from(number).ok().filter(|number| *number > 0);
    match (cells(request.height), cells(request.width)) {
        (Some(rows), Some(cols)) => TermSize { rows, cols },
        _ => DEFAULT_SIZE,
    }
}

fn c_strings<S: AsRef<str>>(
    texts: impl IntoIterator<Item = S>,
    what: &'static str,
) -> Result<Vec<CString>, SpecError> {
    texts
        .into_iter()
        .map(|text| c_string(text.as_ref(), what))
        .collect()
}

fn c_string(text: &str, what: &'static str) -> Result<CString, SpecError> {
    CString::new(text).map_err(|_: NulError| SpecError::Nul(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/bash\nann:x:7:8::/home/ann:/bin/zsh\n";
    const GROUP: &str = "root:x:0:\nann:x:8:\nwheel:x:10:ann\n";

    fn resolve(change: impl FnOnce(&mut ExecRequest)) -> Result<ExecSpec, SpecError> {
        let mut request = ExecRequest::new(vec!["ls".to_owned()]);
        change(&mut request);
        ExecSpec::resolve(&request, &Accounts::of(PASSWD, GROUP), None)
    }

    /// The same by an agent that runs as ann.
    fn resolve_as_ann(change: impl FnOnce(&mut ExecRequest)) -> Result<ExecSpec, SpecError> {
        let mut request = ExecRequest::new(vec!["ls".to_owned()]);
        change(&mut request);
        let agent = AgentUser {
            uid: 7,
            gid: 8,
            groups: vec![8, 10],
        };
        ExecSpec::resolve(&request, &Accounts::of(PASSWD, GROUP), Some(&agent))
    }

    #[test]
    fn the_number_that_means_no_change_is_refused() {
        let error = resolve(|request| request.user = u32::MAX).unwrap_err();
        assert_eq!(error, SpecError::Unchanged("user"));
        let error = resolve(|request| request.group = u32::MAX).unwrap_err();
        assert_eq!(error, SpecError::Unchanged("group"));
        for name in ["4294967295", "-1"] {
            let error = resolve(|request| request.user_name = Some(name.to_owned()));
            assert_eq!(error.unwrap_err(), SpecError::UnknownUser(name.to_owned()));
            let error = resolve(|request| request.group_name = Some(name.to_owned()));
            assert_eq!(error.unwrap_err(), SpecError::UnknownGroup(name.to_owned()));
        }
    }

    #[test]
    fn an_agent_that_is_not_root_runs_commands_only_as_its_own_user() {
        let named = |name: &str| {
            let name = name.to_owned();
            move |request: &mut ExecRequest| request.user_name = Some(name)
        };
        let nothing = resolve_as_ann(|_| {});
        for spec in [
            nothing,
            resolve_as_ann(named("ann")),
            resolve_as_ann(named("7")),
        ] {
            let spec = spec.unwrap();
            assert_eq!((spec.uid, spec.gid, &*spec.groups), (7, 8, &[8, 10][..]));
            assert_eq!(spec.environment()["HOME"], "/home/ann");
        }
        let other_group = resolve_as_ann(|request| (request.user, request.group) = (7, 10));
        for spec in [
            resolve_as_ann(named("root")),
            resolve_as_ann(|request| request.user = 4242),
            other_group,
        ] {
            assert_eq!(spec.unwrap_err(), SpecError::NotRoot);
        }
    }

    #[test]
    fn an_empty_command_is_refused() {
        for command in [vec![], vec![String::new()]] {
            let error = resolve(|request| request.command = command).unwrap_err();
            assert_eq!(error, SpecError::EmptyCommand);
        }
    }

    #[test]
    fn a_name_means_the_user_as_at_a_login() {
        let spec = resolve(|request| request.user_name = Some("ann".to_owned())).unwrap();
        assert_eq!(
            (spec.uid, spec.gid, spec.groups.as_slice()),
            (7, 8, [8, 10].as_slice())
        );
        assert_eq!(spec.environment()["HOME"], "/home/ann");
        assert_eq!(spec.environment()["SHELL"], "/bin/zsh");
        assert_eq!(spec.cwd, Directory::Home(c"/home/ann".to_owned()));
    }

    #[test]
    fn numbers_mean_what_they_say() {
        let spec = resolve(|request| (request.user, request.group) = (7, 99)).unwrap();
        assert_eq!(
            (spec.uid, spec.gid, spec.groups.as_slice()),
            (7, 99, [99, 10].as_slice())
        );
    }

    #[test]
    fn a_uid_without_an_account_works() {
        let spec = resolve(|request| request.user = 4242).unwrap();
        assert_eq!(
            (spec.uid, spec.gid, spec.groups.as_slice()),
            (4242, 0, [0].as_slice())
        );
        assert_eq!(spec.environment()["HOME"], "/");
    }

    #[test]
    fn an_unknown_user_name_is_refused() {
        let error = resolve(|request| request.user_name = Some("eve".to_owned())).unwrap_err();
        assert_eq!(error, SpecError::UnknownUser("eve".to_owned()));
    }

    #[test]
    fn the_request_wins_over_the_defaults() {
        let spec = resolve(|request| {
            request.environment = BTreeMap::from([("PATH".to_owned(), "/a::/b".to_owned())]);
        })
        .unwrap();
        assert_eq!(
            spec.candidates[..3],
            [c"/a/ls", c"./ls", c"/b/ls"].map(CString::from)
        );
    }

    #[test]
    fn a_variable_that_would_change_another_is_refused() {
        for name in ["", "A=B"] {
            let error = resolve(|request| {
                request.environment = BTreeMap::from([(name.to_owned(), String::new())]);
            });
            assert_eq!(error.unwrap_err(), SpecError::BadVariable(name.to_owned()));
        }
    }

    #[test]
    fn a_nul_byte_is_refused() {
        let error = resolve(|request| request.command.push("a\0b".to_owned())).unwrap_err();
        assert_eq!(error, SpecError::Nul("command"));
    }

    #[test]
    fn a_terminal_without_a_size_gets_the_default() {
        let spec = resolve(|request| {
            request.interactive = true;
            request.width = 100;
        })
        .unwrap();
        assert_eq!(spec.terminal, Some(DEFAULT_SIZE));
    }
}
