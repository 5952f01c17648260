//! russh-sftp's client, over the upgraded connection.

use harness::{RawClient, TestAgent, TestFolder};
use russh_sftp::{
    client::SftpSession,
    protocol::{FileAttributes, OpenFlags},
};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

#[tokio::test]
async fn russh_sftp_does_all_that_it_can() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("peers");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let stream = RawClient::new(&agent.socket())
        .upgrade("/1.0/sftp", "sftp")
        .await;
    let sftp = SftpSession::new(stream).await.unwrap();

    let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_be_bytes).collect();
    let flags = OpenFlags::CREATE | OpenFlags::TRUNCATE | OpenFlags::WRITE;
    let mut file = sftp.open_with_flags(at("file"), flags).await.unwrap();
    file.write_all(&data).await.unwrap();
    file.sync_all().await.unwrap();
    file.shutdown().await.unwrap();
    assert!(sftp.read(at("file")).await.unwrap() == data);

    let mut file = sftp.open(at("file")).await.unwrap();
    file.seek(std::io::SeekFrom::Start(2_000_000))
        .await
        .unwrap();
    let mut piece = [0; 8];
    file.read_exact(&mut piece).await.unwrap();
    assert_eq!(piece, data[2_000_000..2_000_008]);
    drop(file);

    sftp.create_dir(at("folder")).await.unwrap();
    sftp.create_dir(at("folder")).await.unwrap_err();
    sftp.rename(at("file"), at("folder/moved")).await.unwrap();
    sftp.hardlink(at("folder/moved"), at("hard")).await.unwrap();
    let attributes = FileAttributes {
        permissions: Some(0o600),
        ..FileAttributes::empty()
    };
    sftp.set_metadata(at("hard"), attributes).await.unwrap();
    let metadata = sftp.metadata(at("folder/moved")).await.unwrap();
    assert_eq!(metadata.permissions, Some(0o100_600));
    assert_eq!(metadata.size, Some(4_000_000));
    let names: Vec<_> = sftp
        .read_dir(at("folder"))
        .await
        .unwrap()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(names, ["moved"]);
    assert_eq!(
        sftp.canonicalize(at("folder/../hard")).await.unwrap(),
        at("hard")
    );
    assert!(!sftp.try_exists(at("file")).await.unwrap());
    let room = sftp.fs_info(at("")).await.unwrap().expect("statvfs");
    assert!(room.blocks > 0);
    sftp.remove_file(at("folder/moved")).await.unwrap();
    sftp.remove_dir(at("folder")).await.unwrap();
    sftp.close().await.unwrap();
}
