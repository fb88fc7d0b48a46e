// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest answers to calls, in any pieces: each call gets one result at most, what was not asked for ends the
//! connection for good, and no more is kept than the answers that are awaited.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use coracle_agent_api::messages::{CheckRequest, WaitProcessRequest};
use coracle_agent_api::{CallError, Client, Pending};
use libfuzzer_sys::fuzz_target;

/// The type of a response.
const RESPONSE: u8 = 2;

#[derive(Arbitrary, Debug)]
enum Step<'i> {
    Check,
    Wait,
    /// A message to the call of this place, as long as it says but for `lie`.
    Answer {
        call: u8,
        body: &'i [u8],
        lie: i8,
    },
    Message {
        header: [u8; 10],
        body: &'i [u8],
    },
    Bytes(&'i [u8]),
    Take(u8),
}

enum Call {
    Check(Pending<CheckRequest>),
    Wait(Pending<WaitProcessRequest>),
}

impl Call {
    /// Whether the call has a result now.
    fn take(&self, client: &mut Client) -> Result<bool, CallError> {
        match self {
            Self::Check(call) => Ok(client.take(call)?.is_some()),
            Self::Wait(call) => Ok(client.take(call)?.is_some()),
        }
    }
}

fn message(call: u8, body: &[u8], lie: i8) -> Vec<u8> {
    let length = (body.len() as u32).wrapping_add_signed(lie.into());
    let number = u32::from(call) * 2 + 1;
    [
        &length.to_be_bytes()[..],
        &number.to_be_bytes(),
        &[RESPONSE, 0],
        body,
    ]
    .concat()
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let (host, mut guest) = UnixStream::pair().expect("there are sockets");
    guest.set_nonblocking(true).expect("a socket can be set up");
    let mut client = Client::new(host).expect("a socket can be set up");
    let mut calls: Vec<(Call, bool)> = Vec::new();
    for step in steps {
        let bytes = match step {
            Step::Check | Step::Wait if calls.len() > 100 => continue,
            Step::Check => {
                let Ok(call) = client.send(&CheckRequest::new()) else {
                    return;
                };
                calls.push((Call::Check(call), false));
                continue;
            }
            Step::Wait => {
                let Ok(call) = client.send(&WaitProcessRequest::new()) else {
                    return;
                };
                calls.push((Call::Wait(call), false));
                continue;
            }
            Step::Take(place) => {
                let Some((call, answered)) = calls.get_mut(usize::from(place)) else {
                    continue;
                };
                match call.take(&mut client) {
                    Ok(has) => {
                        assert!(!(has && *answered), "a call has one result");
                        *answered |= has;
                    }
                    Err(CallError::Agent(_) | CallError::Status { .. }) => {
                        assert!(!*answered, "a call has one result");
                        *answered = true;
                    }
                    // The connection has ended: nothing more comes of it.
                    Err(_) => {
                        for (call, _) in &calls {
                            assert!(!matches!(call.take(&mut client), Ok(true)));
                        }
                        return;
                    }
                }
                continue;
            }
            Step::Answer { call, body, lie } => message(call, body, lie),
            Step::Message { header, body } => [&header[..], body].concat(),
            Step::Bytes(bytes) => bytes.to_vec(),
        };
        // What the socket does not take is lost: the guest's own fault.
        let _ = guest.write(&bytes);
    }
});
