"""An S3 server of one's own (moto), in a process of its own, for as long as a block lasts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").disabled = True
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until whoever began it ends
"""
BUCKET = "results"


@contextmanager
def s3_server() -> Iterator[subprocess.Popen]:
    """The server's process, with one bucket; the environment says where it is, and holds a key that it takes."""
    import boto3
    import s3fs

    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        where = {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{int(process.stdout.readline())}"}
        key = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "a secret", "AWS_DEFAULT_REGION": "us-east-1"}
        alone = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_MAX_ATTEMPTS": "2"}
        with patch.dict(os.environ, where | key | alone):
            s3fs.S3FileSystem.clear_instance_cache()  # those know the environment as it was
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield process
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        process.kill()
        process.communicate()
