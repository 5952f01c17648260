//! OpenSSH's extensions and our own, on real files.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
};

use bytes::Bytes;
use harness::{TestAgent, TestFolder};
use vsock_agent_protocol::sftp::{
    Attributes, Owner, Reply, Request, Times,
    extension::{self, CopyData, HashRange, Holes, HolesFrom, IdLists, NameLists, put_strings},
    open_flags, status,
};

use super::{Session, extended, path};

impl Session {
    pub(super) async fn data(&mut self, request: Request) -> Bytes {
        match self.ask(request).await {
            Reply::Extended { data } => data,
            other => panic!("{other:?}"),
        }
    }

    async fn name(&mut self, request: Request) -> Bytes {
        match self.ask(request).await {
            Reply::Names { names } => names[0].name.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn sftp_extensions_are_advertised_with_their_versions() {
    let agent = TestAgent::start();
    let session = Session::start(&agent).await;
    let said = session.extensions.iter();
    let said: Vec<_> = said
        .map(|(name, version)| (str::from_utf8(name).unwrap(), &version[..]))
        .collect();
    let expected: [(&str, &[u8]); 17] = [
        ("posix-rename@openssh.com", b"1"),
        ("statvfs@openssh.com", b"2"),
        ("fstatvfs@openssh.com", b"2"),
        ("hardlink@openssh.com", b"1"),
        ("fsync@openssh.com", b"1"),
        ("lsetstat@openssh.com", b"1"),
        ("limits@openssh.com", b"1"),
        ("expand-path@openssh.com", b"1"),
        ("copy-data", b"1"),
        ("home-directory", b"1"),
        ("users-groups-by-id@openssh.com", b"1"),
        ("hash@vsock-agent", b"1"),
        ("holes@vsock-agent", b"1"),
        ("replace@vsock-agent", b"1"),
        ("store@vsock-agent", b"1"),
        ("fetch@vsock-agent", b"1"),
        ("open-part@vsock-agent", b"1"),
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn sftp_extensions_rename_link_and_expand_paths() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let (first, second) = (
        path(folder.path(), b"first"),
        path(folder.path(), b"second"),
    );
    fs::write(folder.path().join("first"), "1").unwrap();
    fs::write(folder.path().join("second"), "2").unwrap();
    let both = || put_strings(&[&first, &second]);
    let link = extended(extension::HARDLINK, both());
    assert_eq!(session.code(link.clone()).await, status::FAILURE);
    let rename = extended(extension::POSIX_RENAME, both());
    assert_eq!(session.code(rename).await, status::OK);
    assert_eq!(fs::read(folder.path().join("second")).unwrap(), b"1");
    let link = extended(extension::HARDLINK, put_strings(&[&second, &first]));
    assert_eq!(session.code(link).await, status::OK);
    assert_eq!(
        fs::metadata(folder.path().join("first")).unwrap().nlink(),
        2
    );
    let root = extended(extension::EXPAND_PATH, put_strings(&[b"~root/x/.."]));
    assert_eq!(
        session.code(root).await,
        status::NO_SUCH_FILE,
        "only the last may be missing"
    );
    let expand = |path: &[u8]| extended(extension::EXPAND_PATH, put_strings(&[path]));
    assert_eq!(session.name(expand(b"~root/.")).await, "/root");
    let home = session.name(expand(b"~")).await;
    assert_eq!(session.name(expand(b"")).await, home);
    let nobody = session.code(expand(b"~no such user")).await;
    assert_eq!(nobody, status::NO_SUCH_FILE);
    let home = extended(extension::HOME_DIRECTORY, put_strings(&[b"root"]));
    assert_eq!(session.name(home).await, "/root");
    let ids = IdLists {
        users: vec![0, u32::MAX - 1],
        groups: vec![0],
    };
    let names = session
        .data(extended(extension::USERS_GROUPS_BY_ID, ids.encode()))
        .await;
    let root = Bytes::from_static(b"root");
    let expected = NameLists {
        users: vec![root.clone(), Bytes::new()],
        groups: vec![root],
    };
    assert_eq!(NameLists::decode(names), Ok(expected));
}

#[tokio::test]
async fn lsetstat_changes_the_link_itself() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    fs::write(folder.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink("file", folder.path().join("link")).unwrap();
    let set = |attributes| {
        let set = extension::SetLinkAttributes {
            path: path(folder.path(), b"link"),
            attributes,
        };
        extended(extension::LSETSTAT, set.encode())
    };
    let times = Attributes {
        times: Some(Times {
            accessed: 5,
            modified: 6,
        }),
        ..Attributes::default()
    };
    assert_eq!(session.code(set(times)).await, status::OK);
    let link = fs::symlink_metadata(folder.path().join("link")).unwrap();
    assert_eq!((link.atime(), link.mtime()), (5, 6));
    assert_ne!(fs::metadata(folder.path().join("file")).unwrap().mtime(), 6);
    let size = Attributes {
        size: Some(1),
        ..Attributes::default()
    };
    assert_eq!(session.code(set(size)).await, status::BAD_MESSAGE);
}

#[tokio::test]
async fn statvfs_works_by_path_and_by_handle() {
    let agent = TestAgent::start();
    let mut session = Session::start(&agent).await;
    let by_path = extended(extension::STATVFS, put_strings(&[b"/proc"]));
    let proc = extension::FileSystem::decode(session.data(by_path).await).unwrap();
    assert_eq!((proc.blocks, proc.name_max), (0, 255));
    let handle = session
        .open(&Bytes::from_static(b"/proc/version"), open_flags::READ)
        .await;
    let by_handle = extended(extension::FSTATVFS, put_strings(&[&handle]));
    let same = extension::FileSystem::decode(session.data(by_handle).await).unwrap();
    assert_eq!((same.block_size, same.blocks), (proc.block_size, 0));
}

#[tokio::test]
async fn copy_data_hash_and_ranges_run_on_the_server() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    let source = fs::File::create(folder.path().join("source")).unwrap();
    source.write_all_at(b"data", 1 << 20).unwrap();
    let from = session
        .open(&path(folder.path(), b"source"), open_flags::READ)
        .await;
    let write = open_flags::WRITE | open_flags::CREATE;
    let to = session.open(&path(folder.path(), b"target"), write).await;
    let copy = |from: &Bytes, to: &Bytes| {
        let copy = CopyData {
            from: from.clone(),
            from_offset: (1 << 20) - 1,
            length: 0,
            to: to.clone(),
            to_offset: 1,
        };
        extended(extension::COPY_DATA, copy.encode())
    };
    assert_eq!(session.code(copy(&from, &to)).await, status::OK);
    assert_eq!(fs::read(folder.path().join("target")).unwrap(), b"\0\0data");
    assert_eq!(session.code(copy(&to, &to)).await, status::FAILURE);
    // The target is open for writing only; whoever may read it may have its hash.
    let hash = |length| {
        let range = HashRange {
            handle: to.clone(),
            offset: 2,
            length,
        };
        extended(extension::HASH, range.encode())
    };
    let all = extension::RangeHash::decode(session.data(hash(100)).await).unwrap();
    assert_eq!(all.length, 4);
    let none = extension::RangeHash::decode(session.data(hash(0)).await).unwrap();
    // The first of BLAKE3's test vectors: of no bytes.
    assert_eq!(none.hash[..4], [0xaf, 0x13, 0x49, 0xb9]);
    assert_ne!(all.hash, none.hash);
    let holes = HolesFrom {
        handle: from,
        offset: 0,
    };
    let holes = session
        .data(extended(extension::HOLES, holes.encode()))
        .await;
    let holes = Holes::decode(holes).unwrap();
    assert_eq!(holes.size, (1 << 20) + 4);
    assert_eq!(holes.holes.first().map(|(start, _)| *start), Some(0));
}

#[tokio::test]
async fn sftp_refuses_invalid_attributes_and_sets_valid_ones() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("sftp");
    let mut session = Session::start(&agent).await;
    fs::write(folder.path().join("file"), "12345").unwrap();
    let setstat = |attributes| Request::Setstat {
        path: path(folder.path(), b"file"),
        attributes,
    };
    let beyond = Attributes {
        size: Some(u64::MAX),
        permissions: Some(0o177_601),
        ..Attributes::default()
    };
    assert_eq!(session.code(setstat(beyond)).await, status::BAD_MESSAGE);
    let metadata = fs::metadata(folder.path().join("file")).unwrap();
    assert_eq!(
        (metadata.len(), metadata.permissions().mode()),
        (5, 0o107_601)
    );
    // What the kernel takes away with the owner comes back.
    let owned = Attributes {
        owner: Some(Owner {
            uid: u32::MAX,
            gid: u32::MAX,
        }),
        permissions: Some(0o6755),
        times: Some(Times {
            accessed: u32::MAX,
            modified: 0,
        }),
        ..Attributes::default()
    };
    assert_eq!(session.code(setstat(owned)).await, status::OK);
    let metadata = fs::metadata(folder.path().join("file")).unwrap();
    assert_eq!(metadata.permissions().mode(), 0o106_755);
    assert_eq!((metadata.atime(), metadata.mtime()), (u32::MAX.into(), 0));
}
