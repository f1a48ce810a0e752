//! What this program does beside its main work: one thing for a Job of the chart, under the Job's account, and then it ends.

use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use kube::Client;

/// Does one thing to its end. What goes wrong is told in one line.
pub(crate) fn run(argument: &str, errand: impl AsyncFnOnce(Client) -> Result<()>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.map_err(Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let client = Client::try_default().await.context("cannot find out how to reach the API server")?;
            errand(client).await
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paddock-operator {argument}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
