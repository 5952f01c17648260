//! What a server of SFTP can answer to our client, and that nothing of it does any harm.

use std::{
    fs,
    os::unix::net::UnixListener,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::{runtime::Runtime, time::timeout};
use vsock_agent_client::{
    Client, Endpoint, RemotePath, Security, Sftp,
    copy::{self, CopyOptions},
};

use super::{Target, agent::Panics, confined::ConfinedFolder, hostile};
use crate::TestFolder;

/// Longest that a client may take with a server that has said all it had, on a busy machine.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that answers as the input says, while a client lists, reads and copies: it ends, does
/// not panic, and writes nothing outside its destination.
#[derive(Debug)]
pub struct SftpClient {
    runtime: Runtime,
    panics: Panics,
    folder: TestFolder,
    script: Arc<Mutex<hostile::Script>>,
}

impl Target for SftpClient {
    const NAME: &'static str = "sftp_client";
    const RUNS: u32 = 500;

    fn start() -> Self {
        let folder = TestFolder::new("hostile");
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let script = Arc::new(Mutex::new(hostile::Script::default()));
        let scripts = Arc::clone(&script);
        // It ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, script) = (stream.unwrap(), scripts.lock().unwrap().clone());
                thread::spawn(move || hostile::serve(stream, script));
            }
        });
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            panics: Panics::watch(),
            folder,
            script,
        }
    }

    fn run(&self, data: &[u8]) {
        // The first byte says what the client does.
        let (first, script) = data.split_first().unwrap_or((&0, &[]));
        let folder = ConfinedFolder::new();
        *self.script.lock().unwrap() = hostile::Script::new(script, folder.outside());
        let endpoint = Endpoint::Unix(self.folder.path().join("socket"));
        let work = async {
            let client = Client::new(endpoint, Security::Plain);
            if let Ok(sftp) = client.sftp().await {
                use_all(&sftp, *first, &folder).await;
            }
        };
        let done = self
            .runtime
            .block_on(async { timeout(END_TIMEOUT, work).await });
        assert!(done.is_ok(), "the client hangs");
        folder.check();
        self.panics.check();
    }
}

async fn use_all(sftp: &Sftp, choice: u8, folder: &ConfinedFolder) {
    let source = RemotePath::from("source");
    let inside = folder.inside();
    let options = {
        let mut options = CopyOptions::default();
        options.recursive = choice & 1 == 0;
        options.resume = choice & 2 != 0;
        options.owners = choice & 4 != 0;
        options.special_bits = choice & 8 != 0;
        options
    };
    // Each fails as the server likes; the session may be over after any of them.
    if choice & 16 != 0 {
        let _ = sftp.realpath(source.clone()).await;
        let _ = sftp.stat(source.clone()).await;
        let _ = sftp.readlink(source.clone()).await;
        if let Ok(mut listing) = sftp.read_dir(source.clone()).await {
            while let Ok(Some(_)) = listing.next().await {}
        }
    }
    if choice & 32 != 0 {
        let local = [folder.outside()];
        let _ = copy::push(sftp, &local, &source, &options, &()).await;
    }
    let destination = if choice & 64 != 0 {
        inside.join("new")
    } else {
        inside
    };
    let _ = copy::pull(sftp, &[source], &destination, &options, &()).await;
    // A file that was there is there still, or what the server made of it.
    let _ = fs::symlink_metadata(destination.join("file"));
}
