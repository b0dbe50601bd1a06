//! Shows on the terminal how far the weights have come.

use oarlock_types::{EngineState, EngineStatus};
use tokio::sync::watch;

use crate::fetch::{Progress, terminal_progress};

/// Shows loading until the engine has loaded or failed.
pub(crate) async fn show(mut status: watch::Receiver<EngineStatus>, model: String) {
    let mut display: Option<Box<dyn Progress + Send>> = None;
    loop {
        {
            let now = status.borrow_and_update();
            if now.state != EngineState::Starting {
                break;
            }
            let loading = now.loading;
            if loading.total_bytes > 0 {
                let display = display.get_or_insert_with(|| {
                    let display = terminal_progress();
                    display.stage(&format!("loading {model}"), loading.total_bytes);
                    display
                });
                display.position(loading.loaded_bytes);
            }
        }
        if status.changed().await.is_err() {
            break;
        }
    }
    if let Some(display) = display {
        display.done();
    }
}
