//! A stream of SFTP frames to an agent, in a session that may change one folder, or nothing.

use bytes::{Bytes, BytesMut};
use vsock_agent_protocol::sftp::{FrameHead, Reply, Request, SessionOptions};

use super::{
    Target,
    agent::{FuzzedAgent, exchange},
    confined::ConfinedFolder,
};
use crate::upgrade;

/// Said after INIT: what comes back is replies, nothing outside the root changes, and in a
/// read-only session nothing inside either.
#[derive(Debug)]
pub struct SftpServer(FuzzedAgent);

impl Target for SftpServer {
    const NAME: &'static str = "sftp_server";
    const RUNS: u32 = 500;

    fn start() -> Self {
        Self(FuzzedAgent::start())
    }

    fn run(&self, data: &[u8]) {
        // The first byte says which session.
        let (first, frames) = data.split_first().unwrap_or((&0, &[]));
        let folder = ConfinedFolder::new();
        let options = SessionOptions::default()
            .with_root(folder.inside().display().to_string())
            .with_read_only(first & 1 == 1);
        let mut stream = self.0.connect();
        let path = format!("/1.0/sftp?{}", options.to_query());
        upgrade::ask(&mut stream, &upgrade::request(&path, "sftp"));
        let mut said = BytesMut::new();
        Request::Init { version: 3 }.encode(0, &mut said);
        said.extend_from_slice(frames);
        check_replies(exchange(&mut stream, &said).into());
        if options.read_only {
            folder.check_untouched()
        } else {
            folder.check()
        }
        self.0.check();
    }
}

/// What was answered is VERSION and then whole replies, but for the last, which nobody may have read
/// to its end.
fn check_replies(mut rest: Bytes) {
    let mut first = true;
    while let Some(head) = rest.first_chunk() {
        let head = FrameHead::parse(*head).expect("a frame that a client takes");
        drop(rest.split_to(FrameHead::BYTES));
        let length = usize::try_from(head.body_bytes).unwrap();
        if rest.len() < length {
            return;
        }
        let (_, reply) = Reply::decode(rest.split_to(length)).expect("a reply");
        assert_eq!(matches!(reply, Reply::Version { .. }), first, "{reply:?}");
        first = false;
    }
}
