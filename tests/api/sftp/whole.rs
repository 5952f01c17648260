//! Small files, several in one request.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use bytes::Bytes;
use harness::{TestAgent, TestFolder};
use nix::{sys::stat::Mode, unistd::mkfifo};
use vsock_agent_protocol::sftp::{
    Attributes, Request, Times,
    extension::{
        self, Failure, FetchFiles, FetchedFiles, Replacement, StoreFile, StoreFiles, StoredFiles,
    },
    status,
};

use super::{Session, extended, path};

fn file(part: &'static str, name: &'static str) -> StoreFile {
    StoreFile {
        part: Bytes::from_static(part.as_bytes()),
        name: Bytes::from_static(name.as_bytes()),
        attributes: Attributes {
            permissions: Some(0o640),
            times: Some(Times {
                accessed: 1_000,
                modified: 2_000,
            }),
            ..Attributes::default()
        },
        data: Bytes::from_static(b"new"),
    }
}

fn store(folder: &Path, files: Vec<StoreFile>) -> Request {
    let directory = path(folder, b"");
    let data = StoreFiles {
        directory,
        files,
        replacement: Replacement::default(),
    }
    .encode();
    extended(extension::STORE, data)
}

fn fetch(folder: &Path, names: &[&'static str]) -> Request {
    let files = names.iter().map(|name| (Bytes::from(*name), 100));
    let request = FetchFiles {
        directory: path(folder, b""),
        files: files.collect(),
    };
    extended(extension::FETCH, request.encode())
}

fn codes<T>(outcomes: &[Result<T, Failure>]) -> Vec<u32> {
    let code = |outcome: &Result<T, Failure>| match outcome {
        Ok(_) => status::OK,
        Err(failure) => failure.code,
    };
    outcomes.iter().map(code).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn put_files_stores_atomically_and_fails_per_file() {
    let agent = TestAgent::start();
    for root in [false, true] {
        let folder = TestFolder::new("sftp");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/old"), "old").unwrap();
        fs::set_permissions(at("d/old"), fs::Permissions::from_mode(0o604)).unwrap();
        fs::write(at("d/kept"), "kept").unwrap();
        fs::create_dir_all(at("d/directory/full")).unwrap();
        fs::write(at("outside"), "outside").unwrap();
        symlink("../outside", at("d/link")).unwrap();
        let query = format!("?root={}", folder.path().display());
        let mut session = if root {
            Session::start_with(&agent, &query).await
        } else {
            Session::start(&agent).await
        };
        let files = vec![
            file(".1.part", "old"),
            file(".2.part", "new"),
            file(".3.part", "link"),
            // Refused, and its part is gone.
            file(".4.part", "directory"),
            // A part that is there is somebody else's.
            file("kept", "other"),
            file("link", "other"),
            file("../part", "other"),
            file(".5.part", "../outside"),
            file(".6.part", ".."),
            file("", "other"),
        ];
        let seen = if root { Path::new("/") } else { folder.path() };
        let request = store(&seen.join("d"), files);
        let stored = StoredFiles::decode(session.data(request).await).unwrap();
        let (fails, bad) = (status::FAILURE, status::BAD_MESSAGE);
        assert_eq!(
            codes(&stored.0),
            [0, 0, 0, fails, fails, fails, bad, bad, bad, bad]
        );
        // What is replaced leaves its mode.
        for (name, mode) in [("d/old", 0o604), ("d/new", 0o640), ("d/link", 0o640)] {
            let metadata = at(name).symlink_metadata().unwrap();
            assert!(metadata.is_file(), "{name}");
            let seen = (metadata.permissions().mode() & 0o7777, metadata.mtime());
            assert_eq!(seen, (mode, 2_000));
            assert_eq!(fs::read(at(name)).unwrap(), b"new");
        }
        assert_eq!(fs::read(at("d/kept")).unwrap(), b"kept");
        assert_eq!(fs::read(at("outside")).unwrap(), b"outside");
        assert_eq!(names(&at("d")), ["directory", "kept", "link", "new", "old"]);
        assert_eq!(names(folder.path()), ["d", "outside"]);
        let nowhere = store(&seen.join("nowhere"), vec![file(".1.part", "x")]);
        assert_eq!(session.code(nowhere).await, status::NO_SUCH_FILE);
    }
}

#[tokio::test]
async fn get_files_respects_limits_and_skips_special_files() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("file"), "content").unwrap();
    fs::write(at("long"), [7; 101]).unwrap();
    symlink("file", at("link")).unwrap();
    mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
    let mut session = Session::start(&agent).await;
    let wanted = [
        "empty", "file", "long", "link", "fifo", ".", "nothing", "a/b",
    ];
    let reply = session.data(fetch(folder.path(), &wanted)).await;
    let FetchedFiles(fetched) = FetchedFiles::decode(reply).unwrap();
    let (none, fails, bad) = (status::NO_SUCH_FILE, status::FAILURE, status::BAD_MESSAGE);
    assert_eq!(codes(&fetched), [0, 0, 0, none, fails, bad, none, bad]);
    let seen = fetched.iter().flatten();
    let seen: Vec<_> = seen
        .map(|file| (file.attributes.size, file.data.len()))
        .collect();
    assert_eq!(seen, [(Some(0), 0), (Some(7), 7), (Some(101), 100)]);
}

#[tokio::test]
async fn read_only_session_refuses_put_files() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    fs::write(folder.path().join("file"), "content").unwrap();
    let mut session = Session::start_with(&agent, "?read-only=true").await;
    let stores = store(folder.path(), vec![file(".1.part", "file")]);
    assert_eq!(session.code(stores).await, status::PERMISSION_DENIED);
    let reply = session.data(fetch(folder.path(), &["file"])).await;
    let FetchedFiles(fetched) = FetchedFiles::decode(reply).unwrap();
    assert_eq!(fetched[0].as_ref().unwrap().data, "content");
    assert_eq!(names(folder.path()), ["file"]);
}
