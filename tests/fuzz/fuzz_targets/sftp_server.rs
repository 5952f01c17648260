#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{SftpServer, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<SftpServer> = LazyLock::new(SftpServer::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
