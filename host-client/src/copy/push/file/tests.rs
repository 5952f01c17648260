use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use tokio::time;

use super::super::push;
use crate::{
    copy::CopyOptions,
    protocol::sftp::{
        Attributes, Reply, Request,
        extension::{self, Replaced},
        status,
    },
    sftp::scripted::{handle, said, session_with},
};

/// Pushes a small file, and answers nothing but what comes up to its content for a while. Returns
/// whether the client said more before it had heard of it.
async fn goes_on_unheard(extensions: &[(&'static str, &'static str)]) -> bool {
    let count = extensions.len();
    let path = std::env::temp_dir().join(format!("unheard-{}-{count}", std::process::id()));
    fs::write(&path, "content").unwrap();
    let (sftp, mut server) = session_with(extensions).await;
    let mut unheard = None;
    let serve = async {
        loop {
            let (id, request) = server.next().await;
            let reply = match request {
                Request::Open { .. } => handle(),
                Request::Lstat { .. } | Request::Stat { .. } => said(status::NO_SUCH_FILE),
                // The folder may have a great many names.
                Request::Opendir { .. } => panic!("one file goes there, and all are listed"),
                Request::Write { .. } => {
                    // With the clock stopped this is over when everybody waits.
                    time::pause();
                    let next = time::timeout(Duration::from_secs(1), server.next()).await;
                    time::resume();
                    unheard = Some(next.is_ok());
                    if let Ok((id, _)) = next {
                        server.say(id, said(status::OK)).await;
                    }
                    said(status::OK)
                }
                _ => said(status::OK),
            };
            server.say(id, reply).await;
        }
    };
    let (sources, target) = ([path.clone()], "/target".into());
    let options = CopyOptions::default();
    let pushed = tokio::select! {
        pushed = push(&sftp, &sources, &target, &options, &()) => pushed,
        () = serve => unreachable!("a server stays until its client leaves"),
    };
    fs::remove_file(&path).unwrap();
    assert_eq!(pushed.unwrap().files, 1);
    unheard.unwrap()
}

/// Go's `pkg/sftp`, which Incus's agent uses, writes and sets attributes at the same time: the file
/// would get the time of the write.
#[tokio::test]
async fn attributes_wait_for_the_content_where_order_is_not_kept() {
    assert!(!goes_on_unheard(&[]).await);
    assert!(goes_on_unheard(&[(extension::FSYNC, "1")]).await);
}

#[tokio::test]
async fn a_part_gives_no_rights_that_the_file_does_not_give_whose_name_it_gets() {
    let path = std::env::temp_dir().join(format!("rights-push-{}", std::process::id()));
    fs::write(&path, "secret").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let extensions = [(extension::REPLACE, "1"), (extension::FSYNC, "1")];
    let (sftp, mut server) = session_with(&extensions).await;
    let mut set = Vec::new();
    let serve = async {
        loop {
            let (id, request) = server.next().await;
            let reply = match request {
                Request::Open { .. } => handle(),
                Request::Lstat { .. } => Reply::Attributes {
                    attributes: Attributes {
                        permissions: Some(0o100_640),
                        ..Attributes::default()
                    },
                },
                Request::Stat { .. } => said(status::NO_SUCH_FILE),
                Request::Extended { name, .. } if name == extension::REPLACE => Reply::Extended {
                    data: Replaced::Done.encode(),
                },
                Request::Fsetstat { attributes, .. } => {
                    set.extend(attributes.permissions);
                    said(status::OK)
                }
                _ => said(status::OK),
            };
            server.say(id, reply).await;
        }
    };
    let (sources, target) = ([path.clone()], "/target".into());
    let options = CopyOptions::default();
    let pushed = tokio::select! {
        pushed = push(&sftp, &sources, &target, &options, &()) => pushed,
        () = serve => unreachable!("a server stays until its client leaves"),
    };
    fs::remove_file(&path).unwrap();
    assert_eq!(pushed.unwrap().files, 1);
    assert_eq!(set, [0o640]);
}
