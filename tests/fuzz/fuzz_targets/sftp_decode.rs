#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{SftpDecode, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<SftpDecode> = LazyLock::new(SftpDecode::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
