//! Windows, deadlines and forecasts in words. Numbers come from the controller; what is not known is said with its reason.

use crate::output::{
    screen::Screen,
    text::plural,
    units,
    views::{ForecastView, JobView},
};

/// "22:00-07:00, open until 07:00"
pub(crate) fn window(job: &JobView, screen: &Screen) -> Option<String> {
    let window = job.window.as_ref()?;
    Some(match (job.window_opens_at, job.window_closes_at) {
        (Some(at), _) => format!("{window}, opens {}", screen.coming(at.0)),
        (None, Some(at)) => format!("{window}, open until {}", screen.coming(at.0)),
        (None, None) => window.clone(),
    })
}

/// "07:00", and once it is over how it was kept.
pub(crate) fn deadline(job: &JobView, screen: &Screen) -> Option<String> {
    let deadline = job.deadline_at?;
    let moment = screen.coming(deadline.0);
    Some(match job.finished_at.filter(|_| job.state == "completed") {
        Some(end) if end <= deadline => format!("{moment}, kept"),
        Some(end) => {
            let late_ms = end.0.as_millisecond().saturating_sub(deadline.0.as_millisecond());
            format!("{moment}, missed by {}", units::duration(u64::try_from(late_ms).unwrap_or(0)))
        }
        None => moment,
    })
}

/// Why an end is not known.
fn why_unknown(forecast: &ForecastView) -> Option<String> {
    Some(match forecast.obstacle? {
        "too-early" => "it has not been at work long enough to know its speed".to_owned(),
        "not-running" => "no worker is at work on it".to_owned(),
        "outside-window" => "it waits for its window".to_owned(),
        "behind" => match &forecast.behind {
            Some(job) => format!("job {job} goes first"),
            None => "another job goes first".to_owned(),
        },
        "paused" => "it is paused".to_owned(),
        _ => "the controller's reason is not known to this clusterctl".to_owned(),
    })
}

/// What is to be said of the end of a job with a window or a deadline: the end of a sentence about it.
pub(crate) fn outlook(job: &JobView, screen: &Screen) -> Option<String> {
    let forecast = job.forecast.as_ref().filter(|_| !job.is_finished())?;
    if job.window.is_none() && job.deadline_at.is_none() {
        return None;
    }
    let deadline = job.deadline_at.map(|at| screen.coming(at.0));
    let finish = forecast.finish_at.map(|at| format!("will finish {}", screen.coming(at.0)));
    let unknown = why_unknown(forecast);
    let rows_left = job.rows_total.saturating_sub(job.rows_done());
    let rows = |rows| plural(rows, "row", "rows");
    Some(match (deadline, forecast.rows_left_at_deadline) {
        (Some(deadline), _) if forecast.deadline_passed => {
            let then = match (finish, unknown) {
                (Some(finish), _) => finish,
                (None, Some(why)) => format!("when it will finish is not known: {why}"),
                (None, None) => TOO_FAR.to_owned(),
            };
            format!("its deadline {deadline} has passed with {} left; {then}", rows(rows_left))
        }
        (Some(deadline), Some(0)) => match finish {
            Some(finish) => format!("{finish}, before its deadline {deadline}"),
            None => format!("will be done by its deadline {deadline}"),
        },
        (Some(deadline), Some(left)) => {
            let then = match (finish, unknown) {
                (Some(finish), _) => format!("; {finish}"),
                (None, None) => format!("; {TOO_FAR}"),
                // What it waits for is said beside it.
                (None, Some(_)) => String::new(),
            };
            format!("will not be done by its deadline: {} left at {deadline}{then}", rows(left))
        }
        (Some(deadline), None) => {
            let why = unknown.unwrap_or_else(|| "the controller does not say why".to_owned());
            format!("whether it will be done by {deadline} is not known: {why}")
        }
        (None, _) => match (finish, unknown) {
            (Some(finish), _) => finish,
            (None, Some(why)) => format!("when it will finish is not known: {why}"),
            (None, None) => TOO_FAR.to_owned(),
        },
    })
}

const TOO_FAR: &str = "at this speed it needs more than two months";

/// The same beside words about its window, which are not said twice.
pub(crate) fn beyond_window(job: &JobView, screen: &Screen) -> Option<String> {
    let waits = |forecast: &&ForecastView| {
        forecast.obstacle == Some("outside-window")
            && forecast.rows_left_at_deadline.is_none()
            && !forecast.deadline_passed
            && !job.is_finished()
    };
    match job.forecast.as_ref().filter(waits) {
        None => outlook(job, screen),
        Some(_) => {
            let deadline = screen.coming(job.deadline_at?.0);
            Some(format!("whether it will be done by {deadline} is not known yet"))
        }
    }
}

/// Everything about its hours and its end, for a line of its own.
pub(crate) fn standing(job: &JobView, screen: &Screen) -> Option<String> {
    let waits = job.window_opens_at.map(|at| {
        let opens = screen.coming(at.0);
        if job.state == "running" {
            format!("its window has closed, what is begun is finished or kept: opens {opens}")
        } else {
            format!("waits for its window: opens {opens}")
        }
    });
    let parts: Vec<String> = waits.into_iter().chain(beyond_window(job, screen)).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}
