"""gunicorn -c example_app/gunicorn.conf.py 'example_app:create_app()'"""

from prefetch_kit.registrar.gunicorn import when_ready as when_ready

workers = 1  # each process keeps answers of its own
worker_class = "gthread"
threads = 8
# A pull carries a token of up to 1,024 characters; the default of 4,094 answers it with 414.
limit_request_line = 8190
accesslog = "-"
# %(U)s is the path alone: the query holds tokens and login codes.
access_log_format = '%(h)s "%(m)s %(U)s %(H)s" %(s)s %(b)s %(M)sms'
