//! The leader: reads requests, runs them, and replies.

use std::sync::Arc;

use super::{
    super::{
        SessionError,
        input::{Frame, Input, Next, PartialWrite},
        output::lock,
        reply_buffer::ReplyBuffer,
        request::decode,
    },
    Shared, Waiting,
    followers::Start,
};

/// Why a thread stops leading.
enum Stopped {
    /// The client closed the connection.
    Closed,
    /// Another thread took the input, or the session ended.
    InputTaken,
}

/// Reads and runs requests until another thread takes the input or the session ends.
pub(super) fn lead(shared: &Arc<Shared>, input: Box<Input>) -> Result<(), SessionError> {
    shared.followers.need_watcher(shared);
    shared.output.send(&[])?;
    let stopped = read_and_run(shared, input);
    if !matches!(stopped, Ok(Stopped::InputTaken)) {
        // Requests that arrived completely are still run.
        shared.followers.drain(shared);
    }
    if matches!(stopped?, Stopped::Closed) {
        shared.end(None);
    }
    Ok(())
}

fn read_and_run(shared: &Arc<Shared>, mut input: Box<Input>) -> Result<Stopped, SessionError> {
    let mut buffer = ReplyBuffer::default();
    while let Some(next) = input.next()? {
        let kept = match next {
            Next::Frame(frame) => run_frame(shared, input, frame, &mut buffer)?,
            Next::Write(partial) => queue_write(shared, input, &partial, &mut buffer)?,
        };
        match kept {
            Some(kept) => input = kept,
            None => return Ok(Stopped::InputTaken),
        }
    }
    Ok(Stopped::Closed)
}

/// Runs a request, or has it wait. Gives the input back if it was not taken.
fn run_frame(
    shared: &Arc<Shared>,
    input: Box<Input>,
    frame: Frame,
    buffer: &mut ReplyBuffer,
) -> Result<Option<Box<Input>>, SessionError> {
    let (id, request) = decode(&frame)?;
    let access = request.access(&lock(&shared.handles));
    let waiting = || Waiting::new(&frame, &shared.budget);
    let (turn, ticket) = match shared.followers.start(access, input, waiting) {
        Start::Runs { turn, ticket } => (turn, ticket),
        Start::Ended => return Ok(None),
        Start::Waits(input) => {
            if shared.followers.is_full() {
                shared.output.flush()?;
                shared.followers.wait_for_room(shared)?;
            }
            return Ok(Some(input));
        }
    };
    let reply = shared.run(id, request, buffer);
    drop(frame);
    let input = shared.followers.reclaim(turn, Some(ticket));
    if input.is_some() {
        shared.output.gather(reply)?;
    } else {
        shared.send_and_finish(ticket, reply)?;
    }
    Ok(input)
}

/// Queues a WRITE whose data are still to be read. Gives the input back if it was not taken.
fn queue_write(
    shared: &Arc<Shared>,
    mut input: Box<Input>,
    partial: &PartialWrite,
    buffer: &mut ReplyBuffer,
) -> Result<Option<Box<Input>>, SessionError> {
    let Some(mut write) = shared.reserve_write(partial) else {
        // It is run or refused like any other request.
        let Some(frame) = input.next_frame()? else {
            return Ok(Some(input));
        };
        return run_frame(shared, input, frame, buffer);
    };
    if let Err(error) = input.read_data(partial, write.data_mut()) {
        shared.finish_write(write);
        return Err(error);
    }
    if shared.followers.queue_write(write, shared) {
        return Ok(Some(input));
    }
    let turn = shared.followers.offer(input);
    shared.write_queued()?;
    Ok(shared.followers.reclaim(turn, None))
}
