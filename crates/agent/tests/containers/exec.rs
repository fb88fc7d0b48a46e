// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A further process in a container, with the host's ends of its streams.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use coracle_agent::container::stdio::HostStreams;
use coracle_agent::container::{End, ProcessId};
use coracle_agent_api::AgentError;
use serde_json::{Value, json};

use crate::bundle::Running;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// A process at its start gate.
pub struct Exec<'r> {
    running: &'r Running,
    pub id: String,
    pub pid: u32,
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

/// A process that runs `script` as engines do by default.
pub fn process(script: &str) -> Value {
    json!({
        "args": ["sh", "-c", script],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    })
}

/// The same with a terminal.
pub fn on_a_terminal(script: &str) -> Value {
    let mut process = process(script);
    process["terminal"] = json!(true);
    process
}

impl<'r> Exec<'r> {
    /// Makes a process in a container.
    pub fn create(running: &'r Running, id: &str, process: &Value) -> Result<Self, AgentError> {
        let (stdin, agent_stdin) = UnixStream::pair().unwrap();
        let (stdout, agent_stdout) = UnixStream::pair().unwrap();
        let (stderr, agent_stderr) = UnixStream::pair().unwrap();
        for stream in [&stdout, &stderr] {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
        }
        let streams = HostStreams {
            stdin: Some(agent_stdin.into()),
            stdout: Some(agent_stdout.into()),
            stderr: (process["terminal"] != true).then(|| agent_stderr.into()),
        };
        let name = ProcessId {
            container: &running.id,
            exec: id,
        };
        let json = process.to_string();
        let pid = running
            .containers
            .execute(name, json.as_bytes(), || Ok(streams))?;
        Ok(Self {
            running,
            id: id.to_owned(),
            pid,
            stdin,
            stdout,
            stderr,
        })
    }

    /// Makes and starts a process in a container.
    pub fn start(running: &'r Running, id: &str, process: &Value) -> Result<Self, AgentError> {
        let exec = Self::create(running, id, process)?;
        running.containers.start(exec.name())?;
        Ok(exec)
    }

    pub fn name(&self) -> ProcessId<'_> {
        ProcessId {
            container: &self.running.id,
            exec: &self.id,
        }
    }

    /// Waits for its end and deletes it. Gives its status, and what it wrote up to then.
    pub fn finish(mut self) -> (u32, String, String) {
        self.stdin.shutdown(Shutdown::Write).unwrap();
        let end = self.wait();
        let output = (read(&mut self.stdout), read(&mut self.stderr));
        self.running.containers.delete(self.name()).unwrap();
        (end.exit.status, output.0, output.1)
    }

    pub fn wait(&self) -> End {
        self.running.containers.wait(self.name()).unwrap()
    }

    /// Reads until what is written holds `text`.
    pub fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        let mut buffer = [0; 4096];
        while !read.contains(text) {
            let length = self.stdout.read(&mut buffer).unwrap();
            assert!(length > 0, "`{read}` has no `{text}`");
            read.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        read
    }

    pub fn type_in(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
    }
}

fn read(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
