//! The start of one of several processes: what it says of itself, and how it finds the others.

use super::world::World;
use crate::cli::VERSION;
use crate::config::SEMANTICS;
use crate::epoch_log;
use crate::error::{Exit, Failure};
use crate::mesh::facts::Facts;
use crate::mesh::handshake::Key;
use crate::mesh::{self, Joining, secret};
use crate::plan::Layout;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

/// How long an orderly end may take after another process is lost.
const ORDERLY: Duration = Duration::from_secs(2);

impl World {
    /// Finds the other processes, if there are to be any.
    pub(super) fn join(&self, layout: &Layout) -> Result<(), Failure> {
        let run = &self.run;
        let (options, settings) = (&run.options, &run.config.mesh);
        if options.processes < 2 {
            return Ok(());
        }
        let (own, data_dir) = secret::of_data_dir(&layout.data)?;
        let given = settings.secret_file.as_deref().map(secret::read).transpose()?;
        let (mut listener, mut key) = (None, given.clone().unwrap_or(own));
        let addresses = match &options.control {
            None => mesh::addresses(options.hostfile.as_deref(), options.processes, given.is_some())?,
            Some(control) => {
                let cannot = |e: std::io::Error| Failure::unreachable(format!("a port on loopback: {e}"));
                let here = TcpListener::bind("127.0.0.1:0").map_err(cannot)?;
                let port = here.local_addr().map_err(cannot)?.port();
                let handed = control.exchange(port, settings.join_timeout.std())?;
                listener = Some(here);
                key = Key::new(&handed.secret);
                handed.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
            }
        };
        if addresses.len() != options.processes {
            return Err(Failure::configuration("the supervisor counts other processes than -n"));
        }
        let (fs, logs) = (run.fs.clone(), layout.logs.clone());
        let facts = Facts {
            version: format!("{VERSION}, semantics {SEMANTICS}"),
            processes: options.processes,
            workers: run.config.workers,
            config: run.pure.hash(),
            settings: self.alike(),
            data_dir,
            term: 0,
        };
        let stopping = Arc::downgrade(&self.stopping);
        let joining = Joining {
            index: options.process,
            processes: options.processes,
            addresses,
            listener,
            key,
            facts: Arc::new(move || {
                let terms = epoch_log::terms(&*fs, &logs).map_err(|e| Failure::of_state(&e))?;
                Ok(Facts { term: terms.last().copied().unwrap_or(0), ..facts.clone() })
            }),
            clock: run.clock.clone(),
            patience: settings.join_timeout.std(),
            silence: settings.silence.std(),
            stop: self.stopping.flag.clone(),
            stop_all: Arc::new(move || {
                if let Some(stopping) = stopping.upgrade() {
                    stopping.ask();
                }
            }),
            metrics: self.metrics.clone(),
        };
        tracing::info!(process = options.process, processes = options.processes, "waiting for the other processes");
        let mesh = self.runtime.block_on(mesh::join(joining))?;
        mesh.on_loss(|failure| {
            let failure = failure.clone();
            std::thread::spawn(move || {
                // The workers leave and the program ends by itself, unless a disk or a destination holds it up.
                std::thread::sleep(ORDERLY);
                if failure.code != Exit::Stopped {
                    eprintln!("error: {failure}");
                }
                std::process::exit(failure.code as i32);
            });
        });
        let _ = self.stopping.mesh.set(mesh);
        Ok(())
    }

    /// Settings beside the pure ones without which the processes would wait for each other.
    fn alike(&self) -> BTreeMap<String, String> {
        let config = &self.run.config;
        let sinks: Vec<&str> = config.sinks.keys().map(String::as_str).collect();
        let alike = [
            ("checkpoint.interval", config.checkpoint.interval.to_string()),
            ("sinks", sinks.join(", ")),
            ("--until-end", self.run.options.until_end.to_string()),
        ];
        alike.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
