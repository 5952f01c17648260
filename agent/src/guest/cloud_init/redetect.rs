//! Makes cloud-init detect its datasource again in the same boot.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tokio::time::{Instant, sleep};

use super::boot::{self, Action, Datasource, decide};
use crate::defaults;

/// The first units of cloud-init.
const FIRST_UNITS: [&str; 2] = ["cloud-init-local.service", "cloud-init-main.service"];

/// Why the detection was not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RedetectError {
    /// A file cannot be created or removed.
    #[error("cannot change {0}")]
    File(PathBuf, #[source] io::Error),
    /// A program cannot be started.
    #[error("cannot run {0}")]
    Run(PathBuf, #[source] io::Error),
    /// A program failed.
    #[error("{0} failed: {1}")]
    Failed(PathBuf, String),
    /// A program was killed after [`defaults::CLOUD_INIT_PROGRAM_TIMEOUT`].
    #[error("{0} timed out")]
    TimedOut(PathBuf),
}

/// The effect of [`redetect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// cloud-init uses the datasource in this boot.
    Detecting,
    /// cloud-init can use it only after a reboot.
    TooLate,
    /// cloud-init must not use it, or is not installed.
    Unchanged,
}

/// Makes cloud-init detect `datasource` in this boot, unless it has done so or has begun. `root` is the
/// guest's `/`.
///
/// # Errors
///
/// [`RedetectError`]. cloud-init then uses the datasource that it has detected itself, or none.
pub(crate) async fn redetect(
    root: &Path,
    datasource: Datasource,
) -> Result<Outcome, RedetectError> {
    let mut action = decide(root, datasource);
    if matches!(action, Action::RunDsIdentify | Action::RunGenerator) {
        if is_boot_over(root).await? {
            action = Action::None("the boot is over");
        } else if has_started(root).await? {
            action = Action::TooLate("cloud-init has begun");
        }
    }
    let (reason, outcome) = match action {
        Action::None(reason) => (reason, Outcome::Unchanged),
        Action::TooLate(reason) => (reason, Outcome::TooLate),
        Action::AlreadyListed => ("the datasource is detected already", Outcome::Detecting),
        Action::RunDsIdentify | Action::RunGenerator => {
            tracing::info!(
                datasource = datasource.name(),
                ?action,
                "cloud-init detects its datasource again"
            );
            run_detection(root, action).await?;
            return Ok(Outcome::Detecting);
        }
    };
    tracing::info!(reason, "no new detection of cloud-init's datasource");
    Ok(outcome)
}

async fn run_detection(root: &Path, action: Action) -> Result<(), RedetectError> {
    let marker = root.join(boot::MARKER);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&marker)
        .map_err(|error| RedetectError::File(marker, error))?;
    if action == Action::RunDsIdentify {
        run(&root.join(boot::DS_IDENTIFY), &["--force"]).await?;
        return Ok(());
    }
    let decided = root.join(boot::RUN);
    match fs::remove_dir_all(&decided) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RedetectError::File(decided, error));
        }
        _ => {}
    }
    let systemctl = systemctl(root);
    // Runs the generators.
    run(&systemctl, &["daemon-reload"]).await?;
    // `--no-block`: cloud-init's units are ordered after the agent's, which is not ready yet.
    run(&systemctl, &["--no-block", "start", "cloud-init.target"]).await?;
    Ok(())
}

/// Whether systemd has finished the boot.
pub(crate) async fn is_boot_over(root: &Path) -> Result<bool, RedetectError> {
    let state = run(&systemctl(root), &["show", "--property=SystemState"]).await?;
    Ok(!matches!(
        state.trim(),
        "SystemState=initializing" | "SystemState=starting"
    ))
}

/// Whether systemd has started cloud-init.
async fn has_started(root: &Path) -> Result<bool, RedetectError> {
    let [local, main] = FIRST_UNITS;
    let property = "--property=InactiveExitTimestampMonotonic";
    let shown = run(&systemctl(root), &["show", property, local, main]).await?;
    let mut times = shown
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

/// Runs a program to its end, and returns its standard output.
pub(super) async fn run(program: &Path, arguments: &[&str]) -> Result<String, RedetectError> {
    run_until(
        program,
        arguments,
        Instant::now() + defaults::CLOUD_INIT_PROGRAM_TIMEOUT,
    )
    .await
}

async fn run_until(
    program: &Path,
    arguments: &[&str],
    deadline: Instant,
) -> Result<String, RedetectError> {
    let failed = |error| RedetectError::Run(program.to_owned(), error);
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
            None if Instant::now() < deadline => sleep(defaults::CLOUD_INIT_PROGRAM_POLL).await,
            None => {
                // Fails if it has exited.
                let _ = child.kill();
                let _ = child.wait();
                return Err(RedetectError::TimedOut(program.to_owned()));
            }
        }
    };
    if !status.success() {
        return Err(RedetectError::Failed(
            program.to_owned(),
            status.to_string(),
        ));
    }
    // The program has exited, so its output is in the pipe.
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

    /// The programs that ran in a root whose systemd has this state, after `change`.
    async fn redetected(
        state: &str,
        begun: &str,
        change: impl FnOnce(&Root),
    ) -> (Root, Vec<String>) {
        let root = Root::booting();
        root.systemctl(state, begun);
        change(&root);
        redetect(root.path(), Datasource::Lxd).await.unwrap();
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
    async fn redetection_runs_the_generator_and_then_cloud_init() {
        let (root, done) = redetected(BOOTING, NEVER, |_| {}).await;
        let expected = ["daemon-reload", "--no-block start cloud-init.target"];
        assert_eq!(done, expected);
        assert!(!root.path().join(boot::RUN).exists());
        redetect(root.path(), Datasource::Lxd).await.unwrap();
        assert_eq!(root.log(), expected, "once a boot");
    }

    #[tokio::test]
    async fn redetection_runs_only_ds_identify_where_cloud_init_is_enabled() {
        let (root, done) = redetected(BOOTING, NEVER, found).await;
        assert_eq!(done, ["ds-identify --force"]);
        assert!(root.path().join(boot::RUN).exists());
    }

    #[tokio::test]
    async fn no_redetection_after_the_boot_is_over() {
        for state in ["running", "degraded", "maintenance", "stopping"] {
            let state = format!("SystemState={state}");
            let (_, done) = redetected(&state, NEVER, |_| {}).await;
            assert!(done.is_empty(), "{state}: {done:?}");
        }
    }

    #[tokio::test]
    async fn no_redetection_after_cloud_init_has_started() {
        let begun = format!("{NEVER}\\n\\nInactiveExitTimestampMonotonic=7654321");
        for change in [found, |_: &Root| {}] {
            let (_, done) = redetected(BOOTING, &begun, change).await;
            assert!(done.is_empty(), "{done:?}");
        }
    }

    #[tokio::test]
    async fn a_redetection_error_names_the_program() {
        let root = Root::booting();
        root.program("usr/bin/systemctl", "exit 3");
        let error = redetect(root.path(), Datasource::Lxd).await.unwrap_err();
        assert!(error.to_string().contains("systemctl failed"), "{error}");
        root.remove("usr/bin/systemctl");
        let error = redetect(root.path(), Datasource::Lxd).await.unwrap_err();
        assert!(matches!(error, RedetectError::Run(..)), "{error}");
        assert!(!root.path().join(boot::MARKER).exists());
    }

    #[tokio::test]
    async fn a_redetection_program_that_hangs_is_killed() {
        let root = Root::booting();
        root.program("usr/bin/systemctl", "exec sleep 3600");
        let end = Instant::now() + defaults::CLOUD_INIT_PROGRAM_TIMEOUT / 100;
        let systemctl = systemctl(root.path());
        let error = run_until(&systemctl, &[], end).await.unwrap_err();
        assert!(matches!(error, RedetectError::TimedOut(_)), "{error}");
    }
}
