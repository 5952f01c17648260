#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{SftpClient, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<SftpClient> = LazyLock::new(SftpClient::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
