//! What the printed configuration says of each key.

pub(super) fn note_on(key: &str) -> Option<&'static str> {
    Some(match key {
        "controller.listen" => {
            "Address and port; loopback only until transport security exists. Restart to change."
        }
        "controller.state_dir" => "Ledger, jobs and results. Restart to change.",
        "controller.log_filter" => "error, warn, info, debug, trace, or a tracing filter. Restart to change.",
        "controller.log_files" => "Daily log files kept when it logs to files. Restart to change.",
        "agents.heartbeat_interval_ms" => "Between signs of life of an agent.",
        "agents.observation_interval_ms" => "Between full observations of a machine.",
        "agents.progress_interval_ms" => "Between reports on a busy worker.",
        "jobs.max_batch_rows" => "Rows generated together by one worker, when the job does not say.",
        "jobs.prefill_batch_rows" => "Rows whose prompts are processed together.",
        "jobs.prefill_step_tokens" => "Prompt tokens processed in one step; smaller ones avoid GPU timeouts.",
        "jobs.checkpoint_interval_ms" => {
            "Between checkpoints of unfinished rows: the most generation a crash can cost."
        }
        "jobs.default_max_tokens" => "Tokens a row may generate when neither it nor its job says.",
        "jobs.window_drain_ms" => {
            "How long workers may finish what they had begun when their job's window closes; the rest keeps its checkpoints."
        }
        "gangs.networks" => {
            "Networks the ranks of a sharded model may use among themselves, like \"10.0.0.0/24\", besides the Thunderbolt cables \
             between nodes; no others are used."
        }
        "gangs.rdma" => "Whether ranks may use RDMA where a cable is ready for it.",
        "gangs.same_os_build" => {
            "Whether the Macs of a gang must have the same build of macOS. The same MLX and mlx-lm they must have in any case."
        }
        "gangs.rdma_settle_ms" => {
            "How long RDMA between two nodes is left alone when a gang over it was lost: twice this, doubled for each other one of late."
        }
        "gangs.rendezvous_ms" => "How long the ranks of a gang may take to find one another.",
        "gangs.link_settle_ms" => {
            "How long a link that has failed must carry before it is planned over; doubled for each failure of late."
        }
        "gangs.settle_ms" => {
            "How long nodes and links must stay as they are before a gang is planned over them."
        }
        "gangs.first_port" => "The first port that ranks listen on.",
        "gangs.ports" => "How many ports there are for ranks, from the first one on; used in turn.",
        "recovery.node_silent_ms" => "Without a word for this long, a node's rows go to others.",
        "recovery.node_seen_silent_ms" => {
            "The same for a node whose machine another node still sees; a rank stays as long as its gang computes."
        }
        "recovery.adopt_grace_ms" => "How long a restarted controller waits for the workers it had.",
        "recovery.restart_base_ms" => {
            "First pause before a failed worker is started again; doubles with each failure in a row."
        }
        "recovery.restart_cap_ms" => "Longest such pause.",
        "recovery.failures_before_pause" => {
            "After so many failures in a row without a finished row, the job is paused."
        }
        "recovery.load_budget_ms" => {
            "How long a model may take to load, while it is not known how long it takes."
        }
        "recovery.step_budget_ms" => {
            "How long one step of a worker may take, while it is not known how long steps take."
        }
        "recovery.least_step_budget_ms" => {
            "How long one step may take at the least, however short steps are."
        }
        "recovery.stop_grace_ms" => "Between SIGTERM and SIGKILL of a worker.",
        "recovery.gpu_faults_before_quarantine" => {
            "So many GPU faults of a node within the window, and it is left alone for a while."
        }
        "recovery.gpu_fault_window_ms" => "The window in which they count.",
        "recovery.quarantine_ms" => {
            "How long such a node takes no work; `clusterctl undrain` ends it at once."
        }
        "recovery.most_settle_ms" => {
            "The longest time that something which has failed must hold before it is relied on again."
        }
        "recovery.climb_settle_ms" => {
            "How long a better way to run a job must have been there before the job changes to it; doubled for each change of \
             late."
        }
        "recovery.penalty_half_life_ms" => "In which half of what is remembered of failures is forgotten.",
        "recovery.stranded_bytes" => {
            "So much wired memory that did not come back after a worker was killed, and no model is loaded there until a reboot."
        }
        "recovery.forget_node_days" => "A node not seen for so many days is no longer listed.",
        "reboots.enabled" => {
            "Whether a machine that needs a restart (NeedsReboot) is restarted by itself: one at a time, idle, and only where its \
             agent's configuration allows it ([reboot] allow) and FileVault is off."
        }
        "reboots.settle_ms" => "How long such a machine must have been idle.",
        "reboots.per_day" => "The most restarts of machines of this cluster within a day.",
        "reboots.return_ms" => {
            "A machine that was told to restart and is not back after this long needs a person."
        }
        "limits.max_row_bytes" => "The longest input line.",
        "limits.max_rows" => "The most rows of one job.",
        "limits.disk_reserve_bytes" => {
            "Free space below which nothing more is written and jobs wait. Restart to change."
        }
        "limits.max_events" => "Events kept. Restart to change.",
        "limits.ledger_cache_bytes" => "Memory the ledger may use as cache. Restart to change.",
        "notify.command" => {
            "Program and arguments run for each message, which is one JSON object on its standard input. Empty: none."
        }
        "notify.webhook" => {
            "Address each message is posted to, by the system's curl; users of this machine can see it. Empty: none."
        }
        "notify.on" => {
            "What is told, of job-completed, job-failed, job-cancelled, job-paused, job-parked, job-unparked, \
             deadline-missed, window-missed, node-needs-person, disk-full."
        }
        "notify.min_interval_s" => {
            "Between two messages; what comes in between is folded into the next one. 0: every message is told."
        }
        "notify.timeout_s" => "How long a delivery may take; then it is ended, and counts as failed.",
        _ => return None,
    })
}
