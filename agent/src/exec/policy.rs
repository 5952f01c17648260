//! Restricts which commands the host may run: the options `exec-users` and `exec-commands`.

use std::collections::BTreeMap;

use vsock_agent_protocol::{exec::ExecRequest, id};

use super::spec::ExecSpec;
use crate::system::accounts::Accounts;

/// Besides `LC_*`, the variables of a request that are kept where commands are restricted. Others, such
/// as `PATH` and `LD_PRELOAD`, can change which code an allowed program runs.
const KEPT_VARIABLES: [&str; 4] = ["COLORTERM", "LANG", "TERM", "TZ"];

/// Allowed users and commands. `None` allows all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecPolicy {
    /// Users, by name or number.
    pub users: Option<Vec<String>>,
    /// Programs with their arguments.
    pub commands: Option<Vec<CommandPattern>>,
}

/// A command that is allowed: words separated by spaces, one for each argument.
///
/// The first is the absolute path of the program. `*` in another matches any text within that argument,
/// including slashes; the word `**` at the end matches any further arguments, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandPattern {
    words: Vec<String>,
    /// Whether more arguments are allowed.
    open: bool,
}

/// Text that is not a command pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no pattern for commands: it begins with the program's absolute path, without *, and \
     has ** only at its end"
)]
pub struct ParsePatternError(String);

impl std::str::FromStr for CommandPattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let open = words.pop_if(|last| last == "**").is_some();
        let is_path = |program: &String| program.starts_with('/') && !program.contains('*');
        if !words.first().is_some_and(is_path) || words.iter().any(|word| word.contains("**")) {
            return Err(ParsePatternError(text.to_owned()));
        }
        Ok(Self { words, open })
    }
}

impl CommandPattern {
    fn matches(&self, command: &[String]) -> bool {
        let fits = |(word, argument): (&String, &String)| matches(word, argument);
        let length_fits = if self.open {
            command.len() >= self.words.len()
        } else {
            command.len() == self.words.len()
        };
        length_fits && self.words.iter().zip(command).all(fits)
    }
}

/// Whether a word with `*` matches the text.
fn matches(word: &str, text: &str) -> bool {
    let Some((start, rest)) = word.split_once('*') else {
        return word == text;
    };
    let Some(mut text) = text.strip_prefix(start) else {
        return false;
    };
    let mut parts = rest.split('*');
    let end = parts.next_back().unwrap_or_default();
    for part in parts {
        // The first match leaves the most text for the rest of the pattern.
        let Some((_, behind)) = text.split_once(part) else {
            return false;
        };
        text = behind;
    }
    text.ends_with(end)
}

/// A command that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this guest does not let its host run commands as user {0}")]
    User(u32),
    #[error("this guest does not let its host run commands with group {0} as user {1}")]
    Group(u32, u32),
    #[error("this guest does not let its host run this command")]
    Command,
}

impl ExecPolicy {
    /// Removes variables from the request that could change which program runs.
    pub(crate) fn restrict(&self, request: &mut ExecRequest) {
        if self.commands.is_some() {
            let kept = |name: &str| KEPT_VARIABLES.contains(&name) || name.starts_with("LC_");
            let environment: &mut BTreeMap<String, String> = &mut request.environment;
            environment.retain(|name, _| kept(name));
        }
    }

    /// # Errors
    ///
    /// [`Refused`] if the command is not allowed.
    pub(crate) fn check(
        &self,
        request: &ExecRequest,
        spec: &ExecSpec,
        accounts: &Accounts,
    ) -> Result<(), Refused> {
        if let Some(users) = &self.users {
            check_user(users, spec, accounts)?;
        }
        let fits = |pattern: &CommandPattern| pattern.matches(&request.command);
        match &self.commands {
            Some(commands) if !commands.iter().any(fits) => Err(Refused::Command),
            _ => Ok(()),
        }
    }
}

fn check_user(users: &[String], spec: &ExecSpec, accounts: &Accounts) -> Result<(), Refused> {
    let uid_of = |name: &String| match accounts.user_named(name) {
        Some(user) => Some(user.uid),
        None => id::parse(name),
    };
    if !users.iter().filter_map(uid_of).any(|uid| uid == spec.uid) {
        return Err(Refused::User(spec.uid));
    }
    let is_own = match accounts.user_numbered(spec.uid) {
        Some(user) => accounts.groups_of(&user.name, user.gid).contains(&spec.gid),
        None => spec.gid == spec.uid,
    };
    if is_own {
        Ok(())
    } else {
        Err(Refused::Group(spec.gid, spec.uid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nann:x:7:8::/home/ann:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nann:x:8:\ndisk:x:6:bob\naudio:x:10:ann\n";

    fn check(policy: &ExecPolicy, request: &ExecRequest) -> Result<(), Refused> {
        let accounts = Accounts::of(PASSWD, GROUP);
        let spec = ExecSpec::resolve(request, &accounts, None).unwrap();
        policy.check(request, &spec, &accounts)
    }

    fn request(command: &[&str]) -> ExecRequest {
        ExecRequest::new(command.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn words_match_argument_by_argument() {
        let matches = |pattern: &str, command: &[&str]| {
            let policy = ExecPolicy {
                users: None,
                commands: Some(vec![pattern.parse().unwrap()]),
            };
            check(&policy, &request(command)).is_ok()
        };
        assert!(matches("/bin/df", &["/bin/df"]));
        assert!(matches("/bin/df  -h", &["/bin/df", "-h"]));
        assert!(matches(
            "/bin/systemctl status *",
            &["/bin/systemctl", "status", "a b"]
        ));
        assert!(matches(
            "/bin/cat /var/log/*.log",
            &["/bin/cat", "/var/log/a.log"]
        ));
        assert!(matches("/bin/a *b*c", &["/bin/a", "xbybzc"]));
        assert!(matches("/bin/echo **", &["/bin/echo"]));
        assert!(matches("/bin/echo **", &["/bin/echo", "a", "b"]));
        for (pattern, command) in [
            ("/bin/df", ["/bin/df", "-h"].as_slice()),
            ("/bin/df", &["df"]),
            ("/bin/df *", &["/bin/df"]),
            ("/bin/df *", &["/bin/df", "a", "b"]),
            ("/bin/df -h", &["/bin/df", "-h x"]),
            ("/bin/a b*b", &["/bin/a", "b"]),
            ("/bin/a *bb*b", &["/bin/a", "bb"]),
            ("/bin/echo x **", &["/bin/echo"]),
        ] {
            assert!(!matches(pattern, command), "{pattern} {command:?}");
        }
    }

    #[test]
    fn patterns_name_a_program_by_its_path() {
        for text in [
            "",
            "df",
            "* a",
            "** a",
            "/bin/a ** b",
            "/bin/a**",
            "**",
            "/opt/*/run",
        ] {
            text.parse::<CommandPattern>().unwrap_err();
        }
    }

    #[test]
    fn only_the_users_on_the_list_with_their_own_groups() {
        let policy = ExecPolicy {
            users: Some(vec!["ann".to_owned(), "4242".to_owned()]),
            commands: None,
        };
        let run = |user: &str, group: Option<&str>| {
            let mut request = request(&["/bin/true"]);
            request.user_name = Some(user.to_owned());
            request.group_name = group.map(str::to_owned);
            check(&policy, &request)
        };
        assert_eq!(run("ann", None), Ok(()));
        assert_eq!(run("7", Some("audio")), Ok(()));
        assert_eq!(run("ann", Some("disk")), Err(Refused::Group(6, 7)));
        assert_eq!(run("ann", Some("0")), Err(Refused::Group(0, 7)));
        assert_eq!(run("root", None), Err(Refused::User(0)));
        assert_eq!(run("4242", Some("4242")), Ok(()));
        assert_eq!(run("4242", Some("0")), Err(Refused::Group(0, 4242)));
        // As LXD's clients ask: numbers, and root's group unless one is given.
        let mut by_number = request(&["/bin/true"]);
        by_number.user = 7;
        assert_eq!(check(&policy, &by_number), Err(Refused::Group(0, 7)));
        by_number.group = 8;
        assert_eq!(check(&policy, &by_number), Ok(()));
        assert_eq!(check(&ExecPolicy::default(), &request(&["ls"])), Ok(()));
    }

    #[test]
    fn restricted_commands_get_no_environment_that_changes_them() {
        let mut with = request(&["/bin/true"]);
        let names = ["PATH", "LD_PRELOAD", "TERM", "LC_ALL", "BASH_ENV"];
        with.environment = names.map(|name| (name.to_owned(), "x".to_owned())).into();
        ExecPolicy::default().restrict(&mut with);
        assert_eq!(with.environment.len(), names.len());
        let policy = ExecPolicy {
            users: None,
            commands: Some(Vec::new()),
        };
        policy.restrict(&mut with);
        let left: Vec<_> = with.environment.keys().map(String::as_str).collect();
        assert_eq!(left, ["LC_ALL", "TERM"]);
        assert_eq!(check(&policy, &with), Err(Refused::Command));
    }
}
