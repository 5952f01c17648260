//! A file system that does not answer, as a network file system whose server is gone or a user's own
//! FUSE file system, and a place where it is nobody else's.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::own_process::in_own_process;

/// More than the kernel wants for reading a request (`FUSE_MIN_READ_BUFFER`,
/// `include/uapi/linux/fuse.h`, and the largest write it is told).
const READ_BYTES: usize = 256 * 1024;

/// Size of the head of a request, and of an answer (`struct fuse_in_header`, `fuse_out_header`).
const REQUEST_HEAD_BYTES: usize = 40;
const ANSWER_HEAD_BYTES: u32 = 16;

/// Size of the answer to the first request (`struct fuse_init_out`).
const INIT_BYTES: u32 = 64;

/// Version of the protocol that is spoken.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;

/// Runs `test`, in a process of its own, on a thread whose mounts nobody else sees, nor do those of threads and processes that
/// it starts. Only root can.
///
/// # Panics
///
/// When `test` does, or when there can be no namespace.
pub fn in_own_mounts(test: impl FnOnce() + Send + 'static) {
    let isolated = move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: only root has one");
        let nowhere = None::<&Path>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(nowhere, "/", nowhere, private, nowhere).unwrap();
        test();
    };
    in_own_process(|| {
        if let Err(panic) = thread::spawn(isolated).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A mounted folder in which every look-up waits for ever. `Drop` ends the waiting with an error, and
/// unmounts it.
#[derive(Debug)]
pub struct HangingFolder {
    path: PathBuf,
    requests: Arc<AtomicUsize>,
    reader: Option<JoinHandle<()>>,
}

impl HangingFolder {
    /// Mounts one over a folder that is there. Who waits in it cannot be killed: the file system has
    /// taken the request and works on it.
    ///
    /// # Panics
    ///
    /// When it cannot be mounted.
    #[must_use]
    pub fn mount(path: &Path) -> Self {
        let mut device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .expect("/dev/fuse");
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hanging"), path, Some("fuse"), flags, Some(&*options)).unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let taken = requests.clone();
        let reader = thread::spawn(move || {
            let mut request = vec![0; READ_BYTES];
            let length = device.read(&mut request).unwrap_or(0);
            if length >= REQUEST_HEAD_BYTES {
                // Fails if it is unmounted by now.
                let _ = device.write_all(&initialised(&request[8..16]));
            }
            // Until it is unmounted.
            while device.read(&mut request).is_ok() {
                taken.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self {
            path: path.to_owned(),
            requests,
            reader: Some(reader),
        }
    }

    /// Number of requests that the file system has taken. Before that, a signal ends the waiting
    /// (`request_wait_answer`, `fs/fuse/dev.c`).
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for HangingFolder {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The answer to the first request, which has this number.
fn initialised(unique: &[u8]) -> Vec<u8> {
    let mut answer = (ANSWER_HEAD_BYTES + INIT_BYTES).to_ne_bytes().to_vec();
    answer.extend(0_u32.to_ne_bytes());
    answer.extend(unique);
    answer.extend(MAJOR.to_ne_bytes());
    answer.extend(MINOR.to_ne_bytes());
    answer.resize((ANSWER_HEAD_BYTES + INIT_BYTES).try_into().unwrap(), 0);
    answer
}
