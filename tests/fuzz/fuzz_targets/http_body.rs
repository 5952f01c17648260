#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{HttpBody, Target as _};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<HttpBody> = LazyLock::new(HttpBody::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
