//! A program that goes on in the guest while a test does other things.

use std::process::Stdio;

use harness::TestVm;
use tokio::{io::AsyncReadExt as _, process::Child, time::timeout};

use crate::PATIENCE;

/// A program that runs in the guest until this is dropped.
pub(crate) struct Running {
    child: Child,
    said: Vec<u8>,
}

impl Running {
    /// Starts a shell script, whose standard error is read too.
    pub(crate) fn start(vm: &TestVm, script: &str) -> Self {
        let script = format!("exec 2>&1; {script}");
        let mut exec = vm.exec(["sh", "-c", &script]);
        let child = exec.stdout(Stdio::piped()).spawn().unwrap();
        Self {
            child,
            said: Vec::new(),
        }
    }

    /// Reads until it says `words`, gives all it said so far, and forgets it.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        let stdout = self.child.stdout.as_mut().unwrap();
        let said = &mut self.said;
        let reading = async {
            while !String::from_utf8_lossy(said).contains(words) {
                let read = stdout.read_buf(said).await.unwrap();
                assert!(read > 0, "it ended without {words:?}: {}", text(said));
            }
        };
        let is_late = timeout(PATIENCE, reading).await.is_err();
        assert!(!is_late, "no {words:?} in time: {}", text(&self.said));
        text(&std::mem::take(&mut self.said))
    }
}

fn text(said: &[u8]) -> String {
    String::from_utf8_lossy(said).into_owned()
}
