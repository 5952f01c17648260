#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{ExecFrames, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<ExecFrames> = LazyLock::new(ExecFrames::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
