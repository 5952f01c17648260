#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{HttpHead, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<HttpHead> = LazyLock::new(HttpHead::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
