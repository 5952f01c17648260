#![no_main]

use std::sync::LazyLock;

use harness::fuzz::{Target as _, WebsocketFrames};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<WebsocketFrames> = LazyLock::new(WebsocketFrames::start);

fuzz_target!(|data: &[u8]| TARGET.run(data));
