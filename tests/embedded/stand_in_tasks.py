"""A Celery application whose one task takes as long as it is told."""

import os
import time

from celery import Celery

app = Celery("stand_in", broker=os.environ["REDIS_URL"])
app.conf.broker_connection_retry_on_startup = True


@app.task
def work(seconds: float) -> None:
    print("at work", flush=True)
    time.sleep(seconds)
