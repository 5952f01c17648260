//! A test in a process of its own: the agent keeps threads for all agents of a process, and one that
//! another test has started has that test's mounts and user.

use std::{env, process::Command, thread};

/// Set in the process that runs the one test.
const MARK: &str = "VSOCK_AGENT_TEST_ALONE";

/// Runs `test` in another process, by starting this program again for the test that calls this.
///
/// # Panics
///
/// When the test does, or with `--test-threads 1`, where no thread has a test's name.
pub(crate) fn in_own_process(test: impl FnOnce()) {
    if env::var_os(MARK).is_some() {
        return test();
    }
    let thread = thread::current();
    let name = thread.name().filter(|name| *name != "main");
    let name = name.expect("a thread with the test's name: use two test threads or more");
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads", "2", "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let has_passed = output.status.success() && text.contains("1 passed");
    assert!(has_passed, "{text}\n{errors}");
}
