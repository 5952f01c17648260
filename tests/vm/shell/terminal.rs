//! A terminal on the test's side, with a program in it.

use std::{
    io::{Read as _, Write},
    thread,
};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use tokio::{process::Command, sync::mpsc, time::timeout};

use crate::PATIENCE;

/// Pieces of output that wait to be looked at.
const OUTPUT_DEPTH: usize = 64;

/// A pseudo terminal. `Drop` ends the program in it.
pub(super) struct Terminal {
    master: Box<dyn MasterPty + Send>,
    keyboard: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    output: mpsc::Receiver<Vec<u8>>,
    /// What the program wrote and nobody expected yet.
    unseen: String,
}

impl Terminal {
    /// Starts `command` in a terminal of that many rows and columns.
    pub(super) fn open(command: &Command, size: (u16, u16)) -> Self {
        let pty = native_pty_system().openpty(pty_size(size)).unwrap();
        let command = command.as_std();
        let mut builder = CommandBuilder::new(command.get_program());
        builder.args(command.get_args());
        for (name, value) in command.get_envs() {
            builder.env(name, value.unwrap_or_default());
        }
        let child = pty.slave.spawn_command(builder).unwrap();
        let mut reader = pty.master.try_clone_reader().unwrap();
        let (sender, output) = mpsc::channel(OUTPUT_DEPTH);
        // It ends with the terminal: the read fails when the last writer is gone.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let keyboard = pty.master.take_writer().unwrap();
        Self {
            master: pty.master,
            keyboard,
            child,
            output,
            unseen: String::new(),
        }
    }

    pub(super) fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub(super) fn type_line(&mut self, line: &str) {
        self.type_keys(&format!("{line}\r"));
    }

    pub(super) fn resize(&self, size: (u16, u16)) {
        self.master.resize(pty_size(size)).unwrap();
    }

    /// Waits until the program has written `text`, and takes everything up to its end.
    pub(super) async fn expect(&mut self, text: &str) {
        while !self.unseen.contains(text) {
            let more = timeout(PATIENCE, self.output.recv()).await;
            match more {
                Ok(Some(more)) => self.unseen += &String::from_utf8_lossy(&more),
                Ok(None) => panic!("the program ended without {text:?}: {:?}", self.unseen),
                Err(_) => panic!("no {text:?} in time: {:?}", self.unseen),
            }
        }
        let (_, rest) = self.unseen.split_once(text).unwrap();
        self.unseen = rest.to_owned();
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pty_size((rows, cols): (u16, u16)) -> PtySize {
    PtySize {
        rows,
        cols,
        pixel_width: 0,
        pixel_height: 0,
    }
}
