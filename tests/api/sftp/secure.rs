//! The same through TLS, which the session's threads speak themselves.

use bytes::Bytes;
use futures_util::future::try_join_all;
use harness::{Pair, TestAgent, TestFolder};
use vsock_agent::Security;
use vsock_agent_client::{self as client, Client, Identity, OpenOptions};

/// Size of one piece, in bytes: the largest there is.
const PIECE_BYTES: u32 = 255 * 1024;

/// Pieces: many times what the sockets hold.
const PIECES: u32 = 100;

fn piece(number: u32) -> Bytes {
    let bytes =
        (0..PIECE_BYTES).map(|place| (place.wrapping_mul(number + 1) >> 3).to_le_bytes()[0]);
    bytes.collect()
}

fn offset(number: u32) -> u64 {
    u64::from(number) * u64::from(PIECE_BYTES)
}

#[tokio::test]
async fn concurrent_large_transfers_over_tls_are_exact() {
    let (host, own) = (Pair::lxd(), Pair::lxd());
    let agent = TestAgent::start_with(|folder| {
        own.write_agent(folder, &[&host]);
        Security::Tls(folder.to_owned())
    });
    let identity = Identity::from_pem(&host.identity_pem(&own)).unwrap();
    let endpoint = agent.endpoint().parse().unwrap();
    let client = Client::new(endpoint, client::Security::Tls(identity));
    let session = client.sftp().await.unwrap();
    let folder = TestFolder::new("sftp");
    let path = folder.path().join("file");
    let options = OpenOptions::new().read(true).write(true).create(true);
    let file = session.open(path.as_path(), options).await.unwrap();
    let write = |number| file.write_at(offset(number), piece(number));
    try_join_all((0..PIECES / 2).map(write)).await.unwrap();
    // The first half comes back while the second half goes out.
    let read = |number| file.read_at(offset(number), PIECE_BYTES);
    let (read_back, written) = tokio::join!(
        try_join_all((0..PIECES / 2).map(read)),
        try_join_all((PIECES / 2..PIECES).map(write)),
    );
    written.unwrap();
    for (number, data) in (0..).zip(read_back.unwrap()) {
        assert_eq!(*data, piece(number)[..], "piece {number}");
    }
    file.close().await.unwrap();
    let there = std::fs::read(&path).unwrap();
    let expected: Vec<u8> = (0..PIECES).flat_map(piece).collect();
    assert!(there == expected);
}
