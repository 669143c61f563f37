//! `clusterctl doctor [NODE]`

use crate::{
    App,
    error::{Error, Result},
    exit::Exit,
    output::{human, views::DoctorView},
};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this node, and what concerns it
    #[arg(value_name = "NODE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node: Option<String>,
    /// Tell of what is well, too
    #[arg(long)]
    all: bool,
}

/// What a person can do where no controller answers.
const WITHOUT_CONTROLLER: &str =
    "Each machine can be looked at without a controller: run `cluster-agent probe` there";

/// Looks before a night. Fails where something will end it.
pub async fn run(args: Args, app: &mut App) -> Result<Exit> {
    let mut client = app.connect().await.map_err(point_at_probe)?;
    let view = DoctorView::from(client.diagnose(args.node.unwrap_or_default()).await?);
    app.output.value(&view, |view, screen| human::doctor::doctor(view, args.all, screen))?;
    Ok(if view.fails > 0 { Exit::Failed } else { Exit::Ok })
}

fn point_at_probe(error: Error) -> Error {
    match error {
        Error::Unreachable { address, origin, cause, hint } => {
            let hint = format!("{hint}. {WITHOUT_CONTROLLER}");
            Error::Unreachable { address, origin, cause, hint }
        }
        other => other,
    }
}
