//! Pulls from a guest that lies.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{CopyError, CopyOptions, CopySummary, pull};
use crate::{
    error::ClientError,
    protocol::sftp::{
        Attributes, Name, Reply, Request,
        extension::{self, Failure, FetchFiles, FetchedFile, FetchedFiles},
        status,
    },
    sftp::scripted::{data, handle, said, session_with},
};

const FILE: u32 = 0o100_644;
const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

/// A folder with a destination, and something beside it that nothing may touch.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hostile-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::create_dir(path.join("outside")).unwrap();
        fs::create_dir(path.join("destination")).unwrap();
        Self(path)
    }

    fn destination(&self) -> PathBuf {
        self.0.join("destination")
    }

    /// Nothing outside was written, and no part is left.
    fn is_untouched(&self) {
        assert_eq!(names(&self.0), ["destination", "outside"]);
        assert!(names(&self.0.join("outside")).is_empty());
        let left = names(&self.destination());
        assert!(!left.iter().any(|name| name.ends_with(".part")), "{left:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn attributes(permissions: u32, size: u64) -> Reply {
    Reply::Attributes {
        attributes: entry_attributes(permissions, size),
    }
}

fn entry_attributes(permissions: u32, size: u64) -> Attributes {
    Attributes {
        size: Some(size),
        permissions: Some(permissions),
        ..Attributes::default()
    }
}

fn names_of(entries: &[(&[u8], u32, u64)]) -> Reply {
    let entry = |(name, permissions, size): &(&[u8], u32, u64)| Name {
        name: Bytes::copy_from_slice(name),
        long_name: Bytes::new(),
        attributes: entry_attributes(*permissions, *size),
    };
    Reply::Names {
        names: entries.iter().map(entry).collect(),
    }
}

/// Pulls `/evil` from a guest that answers as `answer` says.
async fn pulled(
    place: &Place,
    options: &CopyOptions,
    answer: impl FnMut(Request) -> Reply,
) -> Result<CopySummary, CopyError> {
    pulled_with(&[], place, options, answer).await
}

/// The same from a guest with extensions.
async fn pulled_with(
    extensions: &[(&'static str, &'static str)],
    place: &Place,
    options: &CopyOptions,
    mut answer: impl FnMut(Request) -> Reply,
) -> Result<CopySummary, CopyError> {
    let (sftp, mut server) = session_with(extensions).await;
    let serve = async {
        loop {
            let (id, request) = server.next().await;
            let reply = match request {
                Request::Close { .. } => said(status::OK),
                request => answer(request),
            };
            server.say(id, reply).await;
        }
    };
    let (sources, destination) = (["/evil".into()], place.destination());
    tokio::select! {
        pulled = pull(&sftp, &sources, &destination, options, &()) => pulled,
        () = serve => unreachable!("a server stays until its client leaves"),
    }
}

fn recursive() -> CopyOptions {
    CopyOptions {
        recursive: true,
        ..CopyOptions::default()
    }
}

/// A guest with one directory, whose listing is `entries`, and files that say "evil".
fn with_listing(entries: &[(&'static [u8], u32, u64)]) -> impl FnMut(Request) -> Reply + use<> {
    let entries = entries.to_vec();
    let mut listed = false;
    move |request| match request {
        Request::Lstat { path } if &path[..] == b"/evil" => attributes(DIRECTORY, 0),
        Request::Opendir { .. } | Request::Open { .. } => handle(),
        Request::Readdir { .. } if !std::mem::replace(&mut listed, true) => names_of(&entries),
        Request::Readdir { .. } => said(status::EOF),
        Request::Readlink { .. } => names_of(&[(b"../../outside", 0, 0)]),
        Request::Read { offset: 0, .. } => data(b"evil"),
        Request::Read { .. } => said(status::EOF),
        Request::Fstat { .. } => attributes(FILE, 4),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn names_that_leave_the_directory_are_refused() {
    for (number, entries) in [
        &[(&b".."[..], DIRECTORY, 0_u64), (b"../outside/x", FILE, 4)][..],
        &[(b"/etc/x", FILE, 4)],
        &[(b"a/b", FILE, 4)],
        &[(b"a\0b", FILE, 4)],
        &[(b"", FILE, 4)],
    ]
    .into_iter()
    .enumerate()
    {
        let place = Place::new(&format!("names-{number}"));
        let summary = pulled(&place, &recursive(), with_listing(entries)).await;
        assert_eq!(summary.unwrap().failed, 1, "{entries:?}");
        assert!(names(&place.destination().join("evil")).is_empty());
        place.is_untouched();
    }
}

#[tokio::test]
async fn a_link_that_comes_again_as_a_directory_is_refused() {
    let place = Place::new("twice");
    let entries = &[(&b"x"[..], LINK, 0), (b"x", DIRECTORY, 0)];
    let summary = pulled(&place, &recursive(), with_listing(entries)).await;
    assert_eq!(summary.unwrap().failed, 1);
    place.is_untouched();
}

#[tokio::test]
async fn a_link_where_a_directory_should_go_is_in_the_way() {
    let place = Place::new("link");
    let evil = place.destination().join("evil");
    fs::create_dir(&evil).unwrap();
    symlink("../../outside", evil.join("x")).unwrap();
    let entries = &[(&b"x"[..], DIRECTORY, 0), (b"y", FILE, 4)];
    let summary = pulled(&place, &recursive(), with_listing(entries)).await;
    let summary = summary.unwrap();
    assert_eq!((summary.failed, summary.files), (1, 1));
    assert_eq!(fs::read(evil.join("y")).unwrap(), b"evil");
    place.is_untouched();
}

#[tokio::test]
async fn a_link_where_a_file_should_go_is_replaced_not_followed() {
    let place = Place::new("replaced");
    let evil = place.destination().join("evil");
    fs::create_dir(&evil).unwrap();
    symlink("../../outside/x", evil.join("x")).unwrap();
    let summary = pulled(&place, &recursive(), with_listing(&[(b"x", FILE, 4)])).await;
    assert_eq!(summary.unwrap().files, 1);
    assert!(evil.join("x").symlink_metadata().unwrap().is_file());
    place.is_untouched();
}

fn is_over_limit(pulled: &Result<CopySummary, CopyError>) {
    assert!(matches!(pulled, Err(CopyError::Limit { .. })), "{pulled:?}");
}

#[tokio::test]
async fn an_endless_listing_ends_at_the_limit() {
    let place = Place::new("endless");
    let options = CopyOptions {
        max_entries: 1_000,
        ..recursive()
    };
    let mut count = 0_u32;
    let summary = pulled(&place, &options, |request| match request {
        Request::Lstat { .. } => attributes(DIRECTORY, 0),
        Request::Opendir { .. } => handle(),
        Request::Readdir { .. } => {
            count += 1;
            // Nothing that would be opened.
            names_of(&[(format!("{count}").as_bytes(), 0o010_644, 0)])
        }
        other => panic!("{other:?}"),
    })
    .await;
    is_over_limit(&summary);
    place.is_untouched();
}

#[tokio::test]
async fn directories_without_end_are_entered_to_the_limit() {
    let place = Place::new("deep");
    let options = CopyOptions {
        max_depth: 20,
        ..recursive()
    };
    let summary = pulled(&place, &options, |request| match request {
        Request::Lstat { .. } => attributes(DIRECTORY, 0),
        Request::Opendir { .. } => handle(),
        Request::Readdir { .. } => names_of(&[(b"d", DIRECTORY, 0)]),
        other => panic!("{other:?}"),
    })
    .await;
    is_over_limit(&summary);
    let top = place.destination().join("evil");
    let below = |depth| top.join(["d"; 20][..depth].join("/"));
    assert!(below(19).is_dir());
    assert!(!below(20).exists());
    place.is_untouched();
}

/// Pulls one file of a guest that says it has `size` bytes and gives `content`.
async fn one_file(place: &Place, size: u64, content: &'static [u8]) -> CopyError {
    let options = CopyOptions::default();
    let pulled = pulled(place, &options, move |request| match request {
        Request::Stat { .. } | Request::Fstat { .. } => attributes(FILE, size),
        Request::Open { .. } => handle(),
        Request::Read { offset, .. } => {
            let offset = usize::try_from(offset).unwrap();
            match content.get(offset..).filter(|rest| !rest.is_empty()) {
                Some(rest) => data(rest),
                None => said(status::EOF),
            }
        }
        other => panic!("{other:?}"),
    });
    pulled.await.unwrap_err()
}

#[tokio::test]
async fn a_size_that_is_a_lie_replaces_nothing() {
    for (number, size) in [3, 5, 100_000, u64::MAX].into_iter().enumerate() {
        let place = Place::new(&format!("size-{number}"));
        fs::write(place.destination().join("evil"), "old").unwrap();
        let error = one_file(&place, size, b"evil").await;
        let is_told = matches!(
            error,
            CopyError::Client(ClientError::SizeChanged { .. } | ClientError::Protocol { .. })
        );
        assert!(is_told, "{size}: {error:?}");
        assert_eq!(fs::read(place.destination().join("evil")).unwrap(), b"old");
        place.is_untouched();
    }
}

#[tokio::test]
async fn more_data_than_asked_for_replaces_nothing() {
    let place = Place::new("long");
    let error = one_file(&place, 4, b"more than four bytes").await;
    assert!(
        matches!(error, CopyError::Client(ClientError::Protocol { .. })),
        "{error:?}"
    );
    assert!(names(&place.destination()).is_empty());
    place.is_untouched();
}

#[tokio::test]
async fn data_without_end_ends_at_the_limit() {
    let place = Place::new("data");
    let options = CopyOptions {
        max_bytes: Some(1_000_000),
        ..CopyOptions::default()
    };
    let pulled = pulled(&place, &options, |request| match request {
        // Else no more than that is read.
        Request::Stat { .. } | Request::Fstat { .. } => attributes(FILE, 0),
        Request::Open { .. } => handle(),
        Request::Read { length, .. } => data(&vec![7; usize::try_from(length).unwrap()]),
        other => panic!("{other:?}"),
    })
    .await;
    is_over_limit(&pulled);
    assert!(names(&place.destination()).is_empty());
    place.is_untouched();
}

/// Pulls a directory with the files `x` and `y`, said to have four bytes, from a guest that
/// fetches files as `fetched` says.
async fn fetched(
    place: &Place,
    mut fetched: impl FnMut(FetchFiles) -> Reply,
) -> Result<CopySummary, CopyError> {
    let extensions = [(extension::STORE, "1"), (extension::FETCH, "1")];
    let mut rest = with_listing(&[(b"x", FILE, 4), (b"y", FILE, 4)]);
    pulled_with(&extensions, place, &recursive(), |request| match request {
        Request::Extended { name, data } if name == extension::FETCH => {
            fetched(FetchFiles::decode(data).unwrap())
        }
        request => rest(request),
    })
    .await
}

fn fetched_file(size: u64, content: &'static [u8]) -> Result<FetchedFile, Failure> {
    Ok(FetchedFile {
        attributes: entry_attributes(FILE, size),
        data: Bytes::from_static(content),
    })
}

fn reply_of(files: &[Result<FetchedFile, Failure>]) -> Reply {
    Reply::Extended {
        data: FetchedFiles(files.to_vec()).encode(),
    }
}

#[tokio::test]
async fn of_files_fetched_together_each_is_whole_or_fetched_again_or_failed() {
    let place = Place::new("together");
    let failure = Failure {
        code: status::FAILURE,
        message: Bytes::new(),
    };
    let reply = reply_of(&[fetched_file(4, b"good"), Err(failure)]);
    let summary = fetched(&place, |_| reply.clone()).await.unwrap();
    assert_eq!((summary.files, summary.failed, summary.bytes), (1, 1, 4));
    let evil = place.destination().join("evil");
    assert_eq!(names(&evil), ["x"]);
    assert_eq!(fs::read(evil.join("x")).unwrap(), b"good");
    // Neither is all there is: they are read by themselves.
    let reply = reply_of(&[fetched_file(5, b"good"), fetched_file(3, b"good")]);
    let summary = fetched(&place, |_| reply.clone()).await.unwrap();
    assert_eq!((summary.files, summary.failed), (2, 0));
    assert_eq!(fs::read(evil.join("x")).unwrap(), b"evil");
    assert_eq!(names(&evil), ["x", "y"]);
    // The request as a whole is refused.
    let summary = fetched(&place, |_| said(status::FAILURE)).await.unwrap();
    assert_eq!((summary.files, summary.failed), (2, 0));
    place.is_untouched();
}

#[tokio::test]
async fn an_answer_about_other_files_or_more_of_them_ends_the_copy() {
    let long = fetched_file(11, b"much longer");
    for (number, files) in [
        &[fetched_file(4, b"evil")][..],
        &[
            fetched_file(4, b"evil"),
            fetched_file(4, b"evil"),
            fetched_file(4, b"evil"),
        ],
        &[fetched_file(4, b"evil"), long],
    ]
    .iter()
    .enumerate()
    {
        let place = Place::new(&format!("fetched-{number}"));
        let reply = reply_of(files);
        let error = fetched(&place, |_| reply.clone()).await.unwrap_err();
        assert!(
            matches!(error, CopyError::Client(ClientError::Protocol { .. })),
            "{error:?}"
        );
        assert!(names(&place.destination().join("evil")).is_empty());
        place.is_untouched();
    }
}
