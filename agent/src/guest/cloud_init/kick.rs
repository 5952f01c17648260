//! The kick: cloud-init decides again, now that its data are there, without a reboot.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokio::time::{Instant, sleep};

use super::boot::{self, Action, decide};
use crate::defaults;

/// Units of which the first to run is cloud-init's beginning.
const FIRST_UNITS: [&str; 2] = ["cloud-init-local.service", "cloud-init-main.service"];

/// How cloud-init calls what it takes its data from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datasource {
    /// The socket.
    Lxd,
    /// The seed.
    NoCloud,
}

impl Datasource {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lxd => "LXD",
            Self::NoCloud => "NoCloud",
        }
    }

    /// The files of which ds-identify looks for one, wherever else the agent may have put the data.
    pub(super) const fn places(self) -> &'static [&'static str] {
        match self {
            Self::Lxd => &["dev/lxd/sock"],
            Self::NoCloud => &[
                "var/lib/cloud/seed/nocloud/meta-data",
                "var/lib/cloud/seed/nocloud-net/meta-data",
            ],
        }
    }
}

/// Why cloud-init was not made to look again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KickError {
    /// A file cannot be made or removed.
    #[error("cannot change {0}")]
    File(PathBuf, #[source] io::Error),
    /// A program cannot be started.
    #[error("cannot run {0}")]
    Run(PathBuf, #[source] io::Error),
    /// It fails.
    #[error("{0} failed: {1}")]
    Failed(PathBuf, String),
    /// It does not end in time, and was ended.
    #[error("{0} takes too long")]
    Slow(PathBuf),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Cloud-init looks for the data in this boot.
    Looks,
    /// It could in another boot only.
    Late,
    /// It is not to, or it is not known.
    Left,
}

/// Has cloud-init look for `wanted` in this boot, if it has not done so and still can. `root` is the
/// guest's `/`.
///
/// # Errors
///
/// [`KickError`]. Cloud-init does what it decided itself then, or nothing.
pub(crate) async fn kick(root: &Path, wanted: Datasource) -> Result<Outcome, KickError> {
    let mut action = decide(root, wanted);
    if matches!(action, Action::Identify | Action::Generate) {
        if is_boot_over(root).await? {
            action = Action::None("the boot is over");
        } else if has_begun(root).await? {
            action = Action::Late("cloud-init has begun");
        }
    }
    let (reason, outcome) = match action {
        Action::None(reason) => (reason, Outcome::Left),
        Action::Late(reason) => (reason, Outcome::Late),
        Action::Found => ("cloud-init looks here already", Outcome::Looks),
        Action::Identify | Action::Generate => {
            tracing::info!(
                datasource = wanted.name(),
                ?action,
                "cloud-init looks again"
            );
            look_again(root, action).await?;
            return Ok(Outcome::Looks);
        }
    };
    tracing::info!(reason, "cloud-init is left alone");
    Ok(outcome)
}

async fn look_again(root: &Path, action: Action) -> Result<(), KickError> {
    let marker = root.join(boot::MARKER);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&marker)
        .map_err(|error| KickError::File(marker, error))?;
    if action == Action::Identify {
        run(&root.join(boot::DS_IDENTIFY), &["--force"]).await?;
        return Ok(());
    }
    let decided = root.join(boot::RUN);
    match fs::remove_dir_all(&decided) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(KickError::File(decided, error));
        }
        _ => {}
    }
    let systemctl = systemctl(root);
    // The generators run with it.
    run(&systemctl, &["daemon-reload"]).await?;
    // Its units come after the agent's, which is not ready yet: waiting for them would be for ever.
    run(&systemctl, &["--no-block", "start", "cloud-init.target"]).await?;
    Ok(())
}

/// Whether systemd has started all there is to be started.
pub(crate) async fn is_boot_over(root: &Path) -> Result<bool, KickError> {
    let state = run(&systemctl(root), &["show", "--property=SystemState"]).await?;
    Ok(!matches!(
        state.trim(),
        "SystemState=initializing" | "SystemState=starting"
    ))
}

/// Whether systemd has started cloud-init.
async fn has_begun(root: &Path) -> Result<bool, KickError> {
    let [local, main] = FIRST_UNITS;
    let begun = "--property=InactiveExitTimestampMonotonic";
    let begun = run(&systemctl(root), &["show", begun, local, main]).await?;
    let mut times = begun
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.1));
    Ok(times.any(|time| time != "0"))
}

pub(super) fn systemctl(root: &Path) -> PathBuf {
    let path = root.join("usr/bin/systemctl");
    if path.exists() {
        path
    } else {
        root.join("bin/systemctl")
    }
}

/// Runs a program to its end, and gives its output.
pub(super) async fn run(program: &Path, arguments: &[&str]) -> Result<String, KickError> {
    run_until(program, arguments, Instant::now() + defaults::KICK_TIMEOUT).await
}

async fn run_until(
    program: &Path,
    arguments: &[&str],
    deadline: Instant,
) -> Result<String, KickError> {
    let failed = |error| KickError::Run(program.to_owned(), error);
    let mut child = Command::new(program)
        .args(arguments.iter().map(OsStr::new))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() < deadline => sleep(defaults::KICK_POLL).await,
            None => {
                // It may have ended meanwhile, which is as well.
                let _ = child.kill();
                let _ = child.wait();
                return Err(KickError::Slow(program.to_owned()));
            }
        }
    };
    if !status.success() {
        return Err(KickError::Failed(program.to_owned(), status.to_string()));
    }
    // It fits into the pipe, or the program would not have ended.
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut output).map_err(failed)?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::{super::fake::Root, *};

    const BOOTING: &str = "SystemState=starting";
    const NEVER: &str = "InactiveExitTimestampMonotonic=0";

    /// What was run by a kick in a root whose systemd says this, after `change`.
    async fn kicked(state: &str, begun: &str, change: impl FnOnce(&Root)) -> (Root, Vec<String>) {
        let root = Root::booting();
        root.systemctl(state, begun);
        change(&root);
        kick(root.path(), Datasource::Lxd).await.unwrap();
        let done = root.log();
        (root, done)
    }

    fn found(root: &Root) {
        root.write("run/cloud-init/enabled", "");
        root.write(
            "run/cloud-init/cloud.cfg",
            "datasource_list: [ NoCloud, None ]\n",
        );
    }

    #[tokio::test]
    async fn the_generator_runs_again_and_then_cloud_init() {
        let (root, done) = kicked(BOOTING, NEVER, |_| {}).await;
        let expected = ["daemon-reload", "--no-block start cloud-init.target"];
        assert_eq!(done, expected);
        assert!(!root.path().join(boot::RUN).exists());
        kick(root.path(), Datasource::Lxd).await.unwrap();
        assert_eq!(root.log(), expected, "once a boot");
    }

    #[tokio::test]
    async fn where_cloud_init_runs_anyway_only_the_search_is_done_again() {
        let (root, done) = kicked(BOOTING, NEVER, found).await;
        assert_eq!(done, ["ds-identify --force"]);
        assert!(root.path().join(boot::RUN).exists());
    }

    #[tokio::test]
    async fn a_boot_that_is_over_is_left_alone() {
        for state in ["running", "degraded", "maintenance", "stopping"] {
            let state = format!("SystemState={state}");
            let (_, done) = kicked(&state, NEVER, |_| {}).await;
            assert!(done.is_empty(), "{state}: {done:?}");
        }
    }

    #[tokio::test]
    async fn a_cloud_init_that_has_begun_is_left_alone() {
        let begun = format!("{NEVER}\\n\\nInactiveExitTimestampMonotonic=7654321");
        for change in [found, |_: &Root| {}] {
            let (_, done) = kicked(BOOTING, &begun, change).await;
            assert!(done.is_empty(), "{done:?}");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_is_named() {
        let root = Root::booting();
        root.program("usr/bin/systemctl", "exit 3");
        let error = kick(root.path(), Datasource::Lxd).await.unwrap_err();
        assert!(error.to_string().contains("systemctl failed"), "{error}");
        root.remove("usr/bin/systemctl");
        let error = kick(root.path(), Datasource::Lxd).await.unwrap_err();
        assert!(matches!(error, KickError::Run(..)), "{error}");
        assert!(!root.path().join(boot::MARKER).exists());
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let root = Root::booting();
        root.program("usr/bin/systemctl", "exec sleep 3600");
        let end = Instant::now() + defaults::KICK_TIMEOUT / 100;
        let systemctl = systemctl(root.path());
        let error = run_until(&systemctl, &[], end).await.unwrap_err();
        assert!(matches!(error, KickError::Slow(_)), "{error}");
    }
}
