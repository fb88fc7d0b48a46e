// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Generates the messages, the client and the server trait from `proto/agent.proto`, in Rust alone: no `protoc`.

use std::path::PathBuf;

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "proto/agent.proto";
    println!("cargo::rerun-if-changed={PROTO}");

    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    // `protobuf-codegen` and `ttrpc-compiler` each write a `mod.rs` of their own half; ours names both.
    Codegen::new()
        .out_dir(&out_dir)
        .input(PROTO)
        .include("proto")
        .rust_protobuf()
        // Without descriptors: reflection, which nobody needs here, would be a tenth of the agent's size.
        .rust_protobuf_customize(
            ProtobufCustomize::default()
                .gen_mod_rs(false)
                .lite_runtime(true),
        )
        .customize(Customize::default())
        .run()?;
    std::fs::write(
        out_dir.join("generated.rs"),
        "pub mod agent;\npub mod agent_ttrpc;\n",
    )?;
    Ok(())
}
