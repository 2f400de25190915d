"""gunicorn -c example_app/gunicorn.conf.py 'example_app:create_app()'"""

from prefetch_kit.registrar.gunicorn import when_ready as when_ready

workers = 1  # each process has its own cache
worker_class = "gthread"
threads = 8
# A pull has a token of up to 1,024 characters; with the default of 4,094 it could get a 414.
limit_request_line = 8190
accesslog = "-"
# %(U)s is the path alone: the query holds tokens and login codes.
access_log_format = '%(h)s "%(m)s %(U)s %(H)s" %(s)s %(b)s %(M)sms'
