//! `clusterctl status`

use crate::{
    App,
    error::Result,
    exit::Exit,
    output::{
        human,
        views::{DoctorView, StatusView},
    },
};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Shows the cluster; the exit code says how it is.
pub async fn run(_args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await?;
    let status = client.status().await?;
    // Beside the point when it does not answer.
    let doctor = client.diagnose(String::new()).await.ok().map(DoctorView::from);
    let view = StatusView::new(status, client.address().as_str(), doctor.as_ref());
    app.output.value(&view, human::status::status)?;
    Ok(if view.healthy { Exit::Ok } else { Exit::Failed })
}
