"""A small Google Cloud Storage in memory, for tests: one bucket over HTTP.

In: the JSON API as gcsfs and tensorstore speak it. Out: objects that are whole or absent; nothing
can be appended to one, and a request that asks for it (a composition, or a resumable upload that
goes on after its end) is refused and counted. Left out: rights, versions, batches of requests.
"""

import collections
import http.server
import importlib.util
import itertools
import json
import re
import sys
import threading
import urllib.parse

import pytest

BUCKET = 'bucket'
# Without an import, which would settle settings that gcsfs reads from the environment once.
NEEDED = pytest.mark.skipif(importlib.util.find_spec('gcsfs') is None,
                            reason='object stores need gcsfs: pip install .[gcs]')


class ObjectStore:
  """The objects of the bucket, and what was asked of them; use it as a context."""

  def __init__(self):
    self.objects: dict[str, tuple[int, bytes]] = {}  # name -> generation, content
    self.puts = collections.Counter()  # name -> how often it was put up
    self.appends = 0  # requests to append, all refused
    self.lock = threading.Lock()
    self.numbers = itertools.count(1)
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    handler = type('Handler', (_Handler,), {'store': self})
    self._server = _Server(('127.0.0.1', 0), handler)
    self.address = f'http://127.0.0.1:{self._server.server_port}'

  @property
  def environment(self) -> dict[str, str]:
    """What makes gcsfs and tensorstore of a process use this store."""
    return {'STORAGE_EMULATOR_HOST': self.address, 'TENSORSTORE_GCS_HTTP_URL': self.address,
            'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'anyone', 'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
            'FSSPEC_GCS_TOKEN': 'anon', 'no_proxy': '127.0.0.1',
            # gcsfs writes over what it was to append to, with a warning
            'PYTHONWARNINGS': 'error:Append mode'}

  def use(self, patch: pytest.MonkeyPatch) -> None:
    """Makes this process use this store."""
    import fsspec  # comes with gcsfs
    for name, value in self.environment.items():
      patch.setenv(name, value)
    patch.setitem(fsspec.config.conf, 'gcs', {'token': 'anon', 'use_listings_cache': False})

  def put(self, name: str, content: bytes) -> int:
    """Puts an object up whole; returns its generation."""
    with self.lock:
      generation = next(self.numbers)
      self.objects[name] = generation, content
      self.puts[name] += 1
      return generation

  def read(self, name: str) -> bytes:
    """The content of an object."""
    return self.objects[name][1]

  def names(self, prefix: str = '') -> list[str]:
    """Names of objects, in order."""
    with self.lock:
      return sorted(name for name in self.objects if name.startswith(prefix))

  def __enter__(self) -> 'ObjectStore':
    threading.Thread(target=self._server.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *error) -> None:
    self._server.shutdown()
    self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
  """A connection a thread; that a client goes away is no error."""
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request, client_address):
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  """One request."""
  protocol_version = 'HTTP/1.1'
  disable_nagle_algorithm = True
  store: ObjectStore

  def log_message(self, *words):
    pass

  def parse_request(self) -> bool:
    if not super().parse_request():
      return False
    path, _, query = self.path.partition('?')
    self.words = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    length = int(self.headers.get('Content-Length', 0))
    self.body = self.rfile.read(length)
    found = re.fullmatch(r'(?:/download|/upload)?/storage/v1/b/([^/]+)(/o)?(?:/(.*))?', path)
    bucket, self.inside, name = found.groups() if found else ('', None, None)
    self.name = urllib.parse.unquote(name or '')
    if bucket != BUCKET:
      self.answer(404, {'error': {'code': 404, 'message': f'no such bucket {path}'}})
      return self.close()
    return True

  def close(self) -> bool:
    self.wfile.flush()
    return False

  def answer(self, code: int, content=b'', **headers) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    self.send_response(code)
    kind = 'application/octet-stream' if isinstance(content, bytes) else 'application/json'
    for key, value in {'Content-Type': kind, 'Content-Length': len(data), **headers}.items():
      self.send_header(key.replace('_', '-'), str(value))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  def missing(self) -> None:
    self.answer(404, {'error': {'code': 404, 'message': f'No such object: {self.name}'}})

  def described(self, name: str) -> dict:
    generation, content = self.store.objects[name]
    time = '2026-01-01T00:00:00.000Z'
    return {'kind': 'storage#object', 'bucket': BUCKET, 'name': name, 'size': str(len(content)),
            'generation': str(generation), 'updated': time, 'timeCreated': time,
            'crc32c': '', 'md5Hash': '', 'etag': str(generation)}

  def do_GET(self) -> None:
    if not self.inside:
      return self.answer(200, {'kind': 'storage#bucket', 'name': BUCKET})
    if not self.name:
      return self.listing()
    if self.name not in self.store.objects:
      return self.missing()
    if self.words.get('alt') != 'media' and not self.path.startswith('/download'):
      return self.answer(200, self.described(self.name))
    generation, content = self.store.objects[self.name]
    if self.words.get('ifGenerationNotMatch') == str(generation):
      return self.answer(304)
    headers = {'x_goog_generation': generation, 'x_goog_stored_content_length': len(content)}
    asked = re.fullmatch(r'bytes=(\d*)-(\d*)', self.headers.get('Range', ''))
    if not asked:
      return self.answer(200, content, **headers)
    first, last = asked.groups()
    start = int(first) if first else max(len(content) - int(last), 0)
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= len(content):
      return self.answer(416, b'', Content_Range=f'bytes */{len(content)}')
    return self.answer(206, content[start:stop], **headers,
                       Content_Range=f'bytes {start}-{stop - 1}/{len(content)}')

  def listing(self) -> None:
    prefix, delimiter = self.words.get('prefix', ''), self.words.get('delimiter', '')
    items, folders = [], set()
    for name in self.store.names(prefix):
      rest = name[len(prefix):]
      if delimiter and delimiter in rest:
        folders.add(prefix + rest[:rest.index(delimiter) + 1])
      elif self.words.get('startOffset', '') <= name < self.words.get('endOffset', '\U0010ffff'):
        items.append(self.described(name))
    self.answer(200, {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(folders)})

  def do_POST(self) -> None:
    if '/rewriteTo/' in self.name:
      source, _, target = self.name.partition('/rewriteTo/')
      self.put(target.split('/o/', 1)[1], self.store.read(source), rewritten=True)
    elif self.name.endswith('/compose'):
      self.refuse()
    elif not self.path.startswith('/upload'):
      self.answer(400)
    elif 'upload_id' in self.words:
      self.continued()
    elif self.words['uploadType'] == 'resumable':
      upload = str(next(self.store.numbers))
      name = self.words.get('name') or json.loads(self.body)['name']
      self.store.uploads[upload] = name, bytearray()
      self.answer(200, {}, Location=f'{self.store.address}/upload/storage/v1/b/{BUCKET}/o'
                                    f'?uploadType=resumable&upload_id={upload}')
    elif self.words['uploadType'] == 'media':
      self.put(self.words['name'], self.body)
    else:
      self.put(*self.parts())

  do_PUT = do_POST

  def parts(self) -> tuple[str, bytes]:
    """Name and content of a multipart upload."""
    boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
    told, content = re.split(b'\r?\n?--' + re.escape(boundary) + b'(?:--)?\r?\n?', self.body)[1:3]
    told, content = (re.split(b'\r?\n\r?\n', part, maxsplit=1)[1] for part in (told, content))
    return json.loads(told)['name'], content

  def continued(self) -> None:
    """A part of a resumable upload; the object is there when the last part is."""
    name, data = self.store.uploads.get(self.words['upload_id'], ('', None))
    first, total = re.fullmatch(r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)',
                                self.headers['Content-Range']).groups()
    if data is None or (first and int(first) != len(data)):  # finished, or not at its end
      return self.refuse()
    data += self.body
    if total != '*' and len(data) == int(total):
      del self.store.uploads[self.words['upload_id']]
      return self.put(name, bytes(data))
    return self.answer(308, b'', Range=f'bytes=0-{len(data) - 1}')

  def put(self, name: str, content: bytes, rewritten: bool = False) -> None:
    wanted = self.words.get('ifGenerationMatch')
    there, _ = self.store.objects.get(name, (0, b''))
    if wanted is not None and wanted != str(there):
      return self.answer(412, {'error': {'code': 412, 'message': 'another generation'}})
    self.store.put(name, content)
    told = self.described(name)
    return self.answer(200, {'done': True, 'resource': told} if rewritten else told)

  def refuse(self) -> None:
    """What an object store says to an append."""
    self.store.appends += 1
    self.answer(400, {'error': {'code': 400, 'message': 'objects cannot be appended to'}})

  def do_DELETE(self) -> None:
    with self.store.lock:
      found = self.store.objects.pop(self.name, None)
    if found is None:
      self.missing()
    else:
      self.answer(204)
